// The browsers of examples and of the on-policy stage's groups. Examples lie in blocks that are unpacked when needed.
const PAGE_SIZE = 10;
const KEPT_BLOCKS = 40;
const FOLD_FROM = 200; // characters of thinking

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function thinking(text) {
  // Thinking is folded; what follows it is shown. A trajectory that was cut off may never end its thinking.
  const box = element("div");
  const start = text.indexOf("<think>"), end = text.indexOf("</think>");
  const inside = text.slice(start + 7, end < 0 ? undefined : end);
  if (start < 0 || inside.length < FOLD_FROM) {
    box.append(element("div", "text", text));
    return box;
  }
  const fold = element("details", "thinking");
  fold.append(element("summary", "dim", (end < 0 ? "unfinished thinking, " : "thinking, ") + inside.length.toLocaleString() + " characters"));
  fold.append(element("div", "text", inside));
  if (start > 0) box.append(element("div", "text", text.slice(0, start)));
  box.append(fold);
  if (end >= 0) box.append(element("div", "text", text.slice(end + 8)));
  return box;
}

function trajectoryNode(t) {
  const node = element("div", "trajectory" + (t.kept ? " kept" : ""));
  if (t.kept) node.append(element("span", "badge correct", "kept"));
  if (t.verdict) node.append(element("span", "badge " + t.verdict, t.verdict.replace("_", " ")));
  if (t.trigger) node.append(element("span", "badge", "rethought: " + t.trigger));
  if (t.before) node.append(element("span", "badge error", "another verifier version: " + t.before.replace("_", " ")));
  if (t.peer) node.append(element("span", "badge error", "math-verify: " + t.peer));
  node.append(element("span", "dim", t.tokens.toLocaleString() + " tokens" + (t.finish === "length" ? ", cut off" : "")));
  if (t.extracted) node.append(element("span", "dim text", ", answer read: " + t.extracted));
  node.append(thinking(t.text));
  return node;
}

function captionNode(c, number) {
  const node = element("div", "caption");
  const reward = c.reward === null || c.reward === undefined ? "not scored" : "reward " + c.reward.toFixed(2);
  node.append(element("span", "badge", "caption " + number + ", " + reward), element("span", "text", c.text));
  if (c.trajectories.length) {
    const right = c.trajectories.filter((t) => t.verdict === "correct").length;
    const fold = element("details", "trajectories");
    fold.open = c.trajectories.some((t) => t.kept);
    fold.append(element("summary", "dim", right + " of " + c.trajectories.length + " trajectories correct"));
    c.trajectories.forEach((t) => fold.append(trajectoryNode(t)));
    node.append(fold);
  }
  return node;
}

function pictureNode(image, id) {
  if (!image) return element("div", "dim", "image not in the store");
  const button = element("button", "picture"), picture = element("img");
  button.setAttribute("aria-label", "full size");
  if (image[1]) button.dataset.original = image[1];
  picture.src = image[0];
  picture.alt = "image of question " + id;
  button.append(picture);
  return button;
}

function exampleNode([e, images], rounds) {
  const node = element("article");
  node.dataset.id = e.id;
  node.tabIndex = -1;
  const pictures = element("div");
  e.images.forEach((digest) => pictures.append(pictureNode(images[digest], e.id)));
  const body = element("div");
  const round = typeof e.round === "string" ? e.round + ", " : rounds > 1 ? "round " + e.round + ", " : "";
  body.append(element("div", "dim", round + e.id + (e.source ? ", " + e.source : "") + ", " + e.type));
  body.append(element("div", "text", e.question));
  e.options.forEach((option, i) => body.append(element("div", "text", String.fromCharCode(65 + i) + ". " + option)));
  body.append(element("div", "dim text", "answer: " + e.answer));
  e.captions.forEach((c, i) => body.append(captionNode(c, i)));
  if (e.answers) {
    const right = e.answers.filter((t) => t.verdict === "correct").length;
    body.append(element("div", "dim", right + " of " + e.answers.length + " answers correct, mean length " + e.tokens_right + " right, " + e.tokens_wrong + " others"));
    e.answers.forEach((t) => body.append(trajectoryNode(t)));
  }
  node.append(pictures, body);
  return node;
}

function holds(e, words) {
  const has = (text) => text.toLowerCase().includes(words);
  return has(e.id) || has(e.question) || has(e.answer) || e.options.some(has) || (e.answers || []).some((t) => has(t.text)) ||
    e.captions.some((c) => has(c.text) || c.trajectories.some((t) => has(t.text) || has(t.extracted)));
}

// One browser: its elements have ids that begin with `prefix`, and so have the attributes of its blocks.
function browser(prefix, what) {
  const mine = (id) => byId(prefix + id);
  const index = JSON.parse(mine("index").textContent);
  const state = { shown: [], page: 0, blocks: new Map(), search: 0 };
  const rounds = [...new Set(index.round)];

  async function block(number) {
    if (!state.blocks.has(number)) {
      const at = (name) => document.querySelector("script[data-" + prefix + name + '="' + number + '"]');
      if (!at("images")) await loaded;
      state.blocks.set(number, Promise.all([unpack(at("block").textContent), JSON.parse(at("images").textContent)]));
      if (state.blocks.size > KEPT_BLOCKS) state.blocks.delete(state.blocks.keys().next().value);
    }
    return state.blocks.get(number);
  }

  async function example(position) {
    const [examples, images] = await block(Math.floor(position / index.block));
    return [examples[position % index.block], images];
  }

  function passes(position) {
    const filter = mine("filter").value, type = mine("type").value, round = mine("round").value;
    if (filter && !(index.flags[position] & (1 << index.names.indexOf(filter)))) return false;
    if (type && index.types[index.type[position]] !== type) return false;
    return !round || String(index.round[position]) === round;
  }

  async function select() {
    const search = ++state.search; // a later key press ends this search
    const words = mine("search").value.trim().toLowerCase();
    const candidates = index.flags.map((_, position) => position).filter(passes);
    state.page = 0;
    if (!words) { state.shown = candidates; return show(); }
    const found = [];
    let painted = performance.now();
    for (const position of candidates) {
      const [e] = await example(position);
      if (search !== state.search) return;
      if (holds(e, words)) found.push(position);
      if (performance.now() - painted > 250) { // let the page breathe and show how far the search is
        mine("count").textContent = "searching, " + Math.round(100 * position / index.flags.length) + "%";
        await new Promise((resolve) => setTimeout(resolve));
        painted = performance.now();
      }
    }
    if (search !== state.search) return;
    state.shown = found;
    await show();
  }

  async function show() {
    const pages = Math.max(1, Math.ceil(state.shown.length / PAGE_SIZE));
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const page = state.page, shown = state.shown;
    const first = page * PAGE_SIZE;
    mine("page").textContent = "page " + (page + 1) + " of " + pages.toLocaleString();
    mine("count").textContent = shown.length.toLocaleString() + " of " + index.flags.length.toLocaleString() + " " + what;
    mine("previous").disabled = page === 0;
    mine("next").disabled = page === pages - 1;
    const examples = await Promise.all(shown.slice(first, first + PAGE_SIZE).map(example));
    if (page !== state.page || shown !== state.shown) return; // turned on meanwhile
    mine("examples").replaceChildren(...examples.map((one) => exampleNode(one, rounds.length)));
    mine("examples").dataset.page = page + 1;
  }

  function turn(by) { state.page += by; return show(); }

  function options(id, values) {
    values.forEach((value) => { const option = element("option", "", value); option.value = value; mine(id).append(option); });
    mine(id).hidden = values.length < 2;
  }

  let waiting;
  mine("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(select, 150); });
  ["filter", "type", "round"].forEach((id) => mine(id).addEventListener("change", select));
  mine("previous").addEventListener("click", () => turn(-1));
  mine("next").addEventListener("click", () => turn(1));
  options("type", index.types);
  options("round", rounds.map(String));
  select();
  return { turn, find: () => mine("search").focus(), choose: () => mine("filter").focus() };
}

function step(by) {
  const all = [...document.querySelectorAll(".browser article")];
  const at = all.indexOf(document.activeElement.closest("article"));
  const next = all[Math.min(Math.max(at + by, 0), all.length - 1)];
  if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
}

function toggle() {
  const focused = document.activeElement.closest("article");
  const folds = focused ? [...focused.querySelectorAll("details")] : [];
  const open = folds.some((fold) => !fold.open);
  folds.forEach((fold) => { fold.open = open; });
}

const browsers = new Map([...document.querySelectorAll(".browser")].map((node) => {
  const prefix = node.dataset.prefix;
  return [node, browser(prefix, prefix ? "groups" : "questions")];
}));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const active = document.activeElement;
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(active.tagName);
  if (typing) { if (event.key === "Escape") active.blur(); return; }
  const mine = browsers.get(active.closest(".browser") || document.querySelector(".browser")); // the first of the page
  if (!mine) return;
  const keys = {
    "/": mine.find, f: mine.choose, ArrowLeft: () => mine.turn(-1), ArrowRight: () => mine.turn(1),
    j: () => step(1), k: () => step(-1), o: toggle,
  };
  if (keys[event.key]) { keys[event.key](); event.preventDefault(); }
});
