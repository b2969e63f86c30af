/** Sessions and turns of Sandkeeper, by its HTTP API: fetch, and no dependency. Node 20 or newer. */

import type { components } from "./api.js";

type Schemas = components["schemas"];
export type Session = Schemas["OpenAnswer"];
export type Limits = Omit<Schemas["OpenRequest"], "id">;
/** Where to work, and the signal that work has to heed: it says that the turn was lost. */
export type Turn = Schemas["TurnAnswer"] & { readonly signal: AbortSignal };

/** What a server refused, as it said it: `type` stays, `message` is for people. */
export class Problem extends Error {
  constructor(readonly status: number, readonly type: string, message: string) {
    super(message);
  }
}

export class Sandkeeper {
  constructor(private readonly url: string, private readonly token?: string) {}

  /** Get the session with a running sandbox: make it, or reopen it, where it is not there. */
  async open(id: string, limits: Limits = {}): Promise<Session> {
    return (await this.call("POST", "/v1/sessions", { body: { id, ...limits } })) as Session;
  }

  /** End it now; its sandbox is torn down in the background. */
  async end(id: string, reason = "ended"): Promise<void> {
    await this.call("DELETE", `/v1/sessions/${id}?reason=${encodeURIComponent(reason)}`);
  }

  /**
   * Work inside of a turn, which is ended when `work` settles. When it is lost (a heartbeat was
   * answered 410 or 404, or it passed its hard ceiling by this machine's clock), `turn.signal`
   * aborts and this rejects at once, whatever `work` does; work that is done is never taken for
   * done then. A heartbeat that is answered 5xx, or not at all, refuses nothing.
   */
  async withTurn<T>(id: string, work: (turn: Turn) => Promise<T>): Promise<T> {
    const asked = performance.now(); // monotonic, and from before the question was on its way
    const begun = (await this.call("POST", `/v1/sessions/${id}/turns`)) as Schemas["TurnAnswer"];
    const path = `/v1/sessions/${id}/turns/${begun.turn_id}`;
    const ceiling = asked + Date.parse(begun.hard_until) - Date.parse(begun.started_at);
    const [lost, over] = [new AbortController(), new AbortController()];
    const beating = this.beat(path, begun.heartbeat_every * 1000, ceiling, lost, over.signal);
    let outcome = "failed";
    try {
      const done = await unless(lost.signal, () => work({ ...begun, signal: lost.signal }));
      outcome = "completed";
      return done;
    } finally {
      over.abort();
      await beating;
      await this.endTurn(path, outcome, lost.signal);
    }
  }

  private async beat(
    path: string, every: number, ceiling: number, lost: AbortController, over: AbortSignal,
  ): Promise<void> {
    for (let pause = every; !over.aborted; ) {
      await sleep(Math.min(pause, ceiling - performance.now()), over);
      const left = ceiling - performance.now();
      if (left <= 0 && !over.aborted) {
        return lost.abort(new Problem(410, "turn-expired", "the turn passed its hard ceiling"));
      }
      try {
        const within = AbortSignal.timeout(Math.max(1, Math.min(every, left)));
        await this.call("PUT", path, { signal: AbortSignal.any([within, over]) });
        pause = every;
      } catch (error) {
        if (refuses(error)) return lost.abort(error);
        pause = every / 4; // so that one comes before the sweep looks a second time
      }
    }
  }

  private async endTurn(path: string, outcome: string, lost: AbortSignal): Promise<void> {
    try {
      const signal = AbortSignal.timeout(10_000);
      await this.call("DELETE", `${path}?outcome=${outcome}`, { signal });
    } catch (error) {
      // Without an answer the work is done all the same, and its session goes idle by itself.
      if (outcome === "completed" && refuses(error)) throw error;
    }
    if (outcome === "completed") lost.throwIfAborted();
  }

  private async call(
    method: string, path: string, { body, signal }: { body?: object; signal?: AbortSignal } = {},
  ): Promise<unknown> {
    const headers: Record<string, string> = {};
    if (this.token !== undefined) headers["Authorization"] = `Bearer ${this.token}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const answer = await fetch(this.url + path, {
      method, headers, body: body === undefined ? null : JSON.stringify(body), signal: signal ?? null,
    });
    const text = await answer.text();
    if (answer.ok) return text === "" ? undefined : JSON.parse(text);
    const said = problem(text);
    throw new Problem(answer.status, said.type ?? "unknown", said.detail ?? `HTTP ${answer.status}`);
  }
}

function problem(text: string): Partial<Schemas["Problem"]> {
  try {
    return JSON.parse(text);
  } catch {
    return {}; // a proxy's page
  }
}

function refuses(error: unknown): boolean {
  return error instanceof Problem && (error.status === 410 || error.status === 404);
}

/** What `work` gives, unless the signal aborts first. */
async function unless<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
  let abort = () => {};
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal.reason);
  });
  signal.addEventListener("abort", abort, { once: true });
  try {
    return await Promise.race([work(), aborted]);
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

function sleep(milliseconds: number, over: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const wake = () => {
      clearTimeout(timer);
      over.removeEventListener("abort", wake);
      resolve();
    };
    const timer = setTimeout(wake, Math.max(0, milliseconds));
    over.addEventListener("abort", wake, { once: true });
  });
}
