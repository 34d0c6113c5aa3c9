"use strict";
// The browser of examples. Every text from a model goes through textContent: it is shown, never executed.
const PAGE_SIZE = 20;
const byId = (id) => document.getElementById(id);
const state = { examples: [], images: {}, shown: [], page: 0 };

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function thinking(text) {
  // Long thinking is folded; what follows it is shown.
  const end = text.indexOf("</think>");
  const box = element("div");
  if (text.startsWith("<think>") && end > 0 && end > 400) {
    const fold = element("details");
    fold.append(element("summary", "dim", "thinking, " + (end - 7).toLocaleString() + " characters"));
    fold.append(element("div", "text", text.slice(7, end)));
    box.append(fold, element("div", "text", text.slice(end + 8)));
  } else {
    box.append(element("div", "text", text));
  }
  return box;
}

function trajectoryNode(t) {
  const node = element("div", "trajectory" + (t.kept ? " kept" : ""));
  if (t.kept) node.append(element("span", "badge correct", "kept"));
  if (t.verdict) node.append(element("span", "badge " + t.verdict, t.verdict.replace("_", " ")));
  node.append(element("span", "dim", t.tokens + " tokens" + (t.finish === "length" ? ", cut off" : "")));
  node.append(thinking(t.text));
  return node;
}

function captionNode(c, index) {
  const node = element("div", "caption");
  const reward = c.reward === null || c.reward === undefined ? "not scored" : "reward " + c.reward.toFixed(2);
  node.append(element("span", "badge", "caption " + index + ", " + reward), element("span", "text", c.text));
  if (c.trajectories.length) {
    const right = c.trajectories.filter((t) => t.verdict === "correct").length;
    const fold = element("details");
    fold.open = c.trajectories.some((t) => t.kept);
    fold.append(element("summary", "dim", right + " of " + c.trajectories.length + " trajectories correct"));
    c.trajectories.forEach((t) => fold.append(trajectoryNode(t)));
    node.append(fold);
  }
  return node;
}

function exampleNode(e) {
  const node = element("article");
  node.dataset.id = e.id;
  const pictures = element("div");
  for (const digest of e.images) {
    const source = state.images[digest];
    if (!source) { pictures.append(element("div", "dim", "image not in the store")); continue; }
    const image = element("img");
    image.src = source;
    image.alt = "image of question " + e.id;
    pictures.append(image);
  }
  const body = element("div");
  body.append(element("div", "dim", e.id + (e.type ? ", " + e.type : "")));
  body.append(element("div", "text", e.question), element("div", "dim", "answer: " + e.answer));
  e.captions.forEach((c, index) => body.append(captionNode(c, index)));
  node.append(pictures, body);
  return node;
}

const all = (e) => e.captions.flatMap((c) => c.trajectories);
const FILTERS = {
  "": () => true,
  kept: (e) => all(e).some((t) => t.kept),
  none: (e) => !all(e).some((t) => t.kept),
  wrong: (e) => all(e).length > 0 && all(e).every((t) => t.verdict !== "correct"),
  broken: (e) => all(e).some((t) => t.verdict === "timeout" || t.verdict === "error"),
  rewarded: (e) => e.captions.some((c) => c.reward > 0.75 && c.trajectories.some((t) => t.verdict !== "correct")),
  disagreement: (e) => e.captions.some((c) => c.reward === 0) && e.captions.some((c) => c.reward === 1),
};

function matches(e, words) {
  if (!words) return true;
  const texts = [e.id, e.question, e.answer, ...e.captions.map((c) => c.text), ...all(e).map((t) => t.text)];
  return texts.some((text) => text.toLowerCase().includes(words));
}

function select() {
  const words = byId("search").value.trim().toLowerCase();
  const filter = FILTERS[byId("filter").value];
  state.shown = state.examples.filter((e) => filter(e) && matches(e, words));
  state.page = 0;
  draw();
}

function draw() {
  const pages = Math.max(1, Math.ceil(state.shown.length / PAGE_SIZE));
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const first = state.page * PAGE_SIZE;
  byId("examples").replaceChildren(...state.shown.slice(first, first + PAGE_SIZE).map(exampleNode));
  byId("page").textContent = "page " + (state.page + 1) + " of " + pages;
  byId("count").textContent = state.shown.length.toLocaleString() + " of " + state.examples.length.toLocaleString() + " questions";
  byId("previous").disabled = state.page === 0;
  byId("next").disabled = state.page === pages - 1;
}

function turn(by) { state.page += by; draw(); }

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function drawCharts() {
  for (const block of document.querySelectorAll("script[data-chart]")) {
    const figure = JSON.parse(block.textContent);
    Plotly.newPlot(block.dataset.chart, figure.data, figure.layout, { displayModeBar: false, responsive: true });
  }
}

byId("search").addEventListener("input", select);
byId("filter").addEventListener("change", select);
byId("previous").addEventListener("click", () => turn(-1));
byId("next").addEventListener("click", () => turn(1));
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement.tagName);
  if (event.key === "/" && !typing) { byId("search").focus(); event.preventDefault(); }
  if (typing) { if (event.key === "Escape") document.activeElement.blur(); return; }
  if (event.key === "ArrowLeft") turn(-1);
  if (event.key === "ArrowRight") turn(1);
});

unpack(byId("data").textContent).then((data) => {
  state.examples = data.examples;
  state.images = data.images;
  select();
});
