/** A server whose conversations each hold a sandbox, and whose answers are streams. */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as wait } from "node:timers/promises";

import { Problem, Sandkeeper, type Turn } from "./sandkeeper.js";

const { SANDKEEPER_URL = "http://127.0.0.1:8585", SANDKEEPER_TOKEN, PORT = "3000" } = process.env;
const keeper = new Sandkeeper(SANDKEEPER_URL, SANDKEEPER_TOKEN);

async function stream(response: ServerResponse, conversation: string, seconds: number) {
  await keeper.open(conversation);
  // "close" of the response: that of the request comes when its body was read.
  const left = new AbortController();
  response.once("close", () => left.abort(new Error("the client went away")));
  await keeper.withTurn(conversation, async (turn) => {
    response.writeHead(200, { "Content-Type": "text/plain" });
    const signal = AbortSignal.any([turn.signal, left.signal]);
    for await (const word of agent(turn, seconds, signal)) {
      response.write(word);
    }
  });
  response.end(); // after the turn: an answer that is complete says that it held until then
}

/** Yours. It heeds the signal wherever it waits. */
async function* agent(turn: Turn, seconds: number, signal: AbortSignal) {
  yield `${turn.sandbox.external_id}\n`;
  for (let number = 0; number < seconds * 5; number += 1) {
    await wait(200, undefined, { signal });
    yield `word ${number}\n`;
  }
}

async function answer(request: IncomingMessage, response: ServerResponse) {
  const url = new URL(request.url ?? "/", "http://here");
  const [, place, conversation, what] = url.pathname.split("/");
  if (place !== "conversations" || conversation === undefined) {
    response.writeHead(404).end();
  } else if (request.method === "POST" && what === "stream") {
    await stream(response, conversation, Number(url.searchParams.get("seconds") ?? 1));
  } else if (request.method === "DELETE" && what === undefined) {
    await keeper.end(conversation, "user left");
    response.writeHead(202).end();
  } else {
    response.writeHead(405).end();
  }
}

function refuse(response: ServerResponse, error: unknown) {
  console.error(String(error));
  if (response.headersSent) {
    response.destroy(); // broken off: nobody takes half an answer for a whole one
  } else {
    response.writeHead(error instanceof Problem ? error.status : 502).end(String(error));
  }
}

const server = createServer((request, response) => {
  answer(request, response).catch((error: unknown) => refuse(response, error));
});
server.listen(Number(PORT), "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
});
