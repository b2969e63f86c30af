// Live pages, charts and the keyboard. Nothing here is needed to read a page or to act.
(() => {
  "use strict";
  const base = document.body.dataset.base;
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Charts

  let charts = [];
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function draw(box) {
    const labels = JSON.parse(box.dataset.labels);
    const values = JSON.parse(box.dataset.values);
    const axis = { stroke: color("--quiet"), grid: { show: false }, ticks: { show: false }, font: "12px system-ui" };
    const step = Math.ceil(labels.length / (box.clientWidth < 420 ? 4 : 8));
    const few = labels.length < 10;
    const chart = new uPlot({
      width: Math.max(200, box.clientWidth), height: 180, legend: { show: false }, cursor: { show: false },
      scales: { x: { time: false, range: [-0.6, labels.length - 0.4] }, y: { range: (_, __, most) => [0, Math.max(4, most * 1.1)] } },
      axes: [
        { ...axis, size: 28, splits: () => labels.map((_, at) => at).filter((at) => few || at % step === 0), values: (_, at) => at.map((each) => labels[each]) },
        { ...axis, size: 56, grid: { show: true, stroke: color("--line"), width: 1 }, values: (_, at) => at.map((each) => Number.isInteger(each) ? each.toLocaleString("en") : "") },
      ],
      series: [{}, { fill: color("--accent"), stroke: color("--accent"), width: 0, paths: uPlot.paths.bars({ size: [0.72, 60] }), points: { show: false } }],
    }, [labels.map((_, at) => at), values], box);
    charts.push(chart);
  }

  function redraw() {
    charts.forEach((chart) => chart.destroy());
    charts = [];
    all(".chart").forEach(draw);
  }

  // Live: the stream says that something changed, and the page asks for its living part again.

  const state = one("#live-state");
  const say = (words, kind) => { if (state) { state.textContent = words; state.dataset.kind = kind; } };
  let stream = null, wanted = false, asked = 0;

  const isBusy = () => all("#live input:checked, #every:checked, dialog[open], #live details[open]").length > 0;

  function refresh() {
    const live = one("[data-live]");
    if (!live || document.hidden || isBusy()) { wanted = true; return; }
    wanted = false;
    asked = Date.now();
    htmx.ajax("GET", location.pathname + location.search, { source: live, target: live, select: "#live", swap: "outerHTML" }).catch(() => {});
  }

  function listen() {
    if (stream || !state || !one("[data-live]")) return;
    stream = new EventSource(`${base}/live`);
    stream.onopen = () => say("live", "good");
    stream.onerror = () => say("reconnecting", "warn");
    stream.addEventListener("changed", () => { say("live", "good"); refresh(); });
    stream.addEventListener("away", () => say("database away", "bad"));
  }

  function hush() { if (stream) { stream.close(); stream = null; say("paused", ""); } }

  document.addEventListener("visibilitychange", () => { if (document.hidden) hush(); else { listen(); refresh(); } });
  // Ages grow also where nothing changes.
  setInterval(() => { if (stream && (wanted || Date.now() - asked > 15000)) refresh(); }, 1000);
  document.addEventListener("htmx:afterSwap", redraw);

  // What is picked

  function counted() {
    const says = one("#picked"), every = one("#every");
    if (!says) return;
    const number = all("input[name=pick]:checked").length;
    says.textContent = every && every.checked ? "all that match are picked" : number ? `${number} picked` : "nothing is picked";
  }
  document.addEventListener("change", counted);
  document.addEventListener("htmx:afterSwap", counted);

  // Keyboard

  const help = one("#help");
  const rows = () => all("a.row");
  let after = "";

  function move(by) {
    const list = rows();
    const row = document.activeElement.closest("tr");
    const at = row ? list.findIndex((each) => row.contains(each)) : -1;
    const next = list[Math.min(list.length - 1, Math.max(0, at + by))];
    if (next) next.focus();
  }

  const keys = {
    "/": () => { const filter = one("#filter"); if (filter) filter.focus(); },
    "?": () => help.showModal(),
    j: () => move(1),
    k: () => move(-1),
    x: () => { const row = document.activeElement.closest("tr"); const box = row && one("input[type=checkbox]", row); if (box) box.click(); },
  };

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input:not([type=checkbox]), select, textarea");
    if (!help || typing || event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const page = after === "g" ? one(`nav a[data-key="${CSS.escape(event.key)}"]`) : null;
    after = event.key === "g" ? "g" : "";
    if (page) { event.preventDefault(); page.click(); return; }
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  if (help) one("#help-button").addEventListener("click", () => help.showModal());

  redraw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let later = 0;
  addEventListener("resize", () => { clearTimeout(later); later = setTimeout(redraw, 150); });
  listen();
})();
