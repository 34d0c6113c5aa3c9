"use strict";
// Shared by all pages: building elements, showing texts of models, drawing charts when they come into view.
const byId = (id) => document.getElementById(id);
// Characters that are not seen or that turn the reading direction are written out.
const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
const visible = (text) => text.replace(HIDDEN, (c) => "\u27e8U+" + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "\u27e9");
const loaded = new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve));

// Every text goes through textContent: it is shown, never executed.
function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = visible(String(text));
  return node;
}

const PRINTED_WIDTH = 660; // pixels of a chart on paper
const drawn = new Set();

function draw(chart) {
  if (drawn.has(chart)) return;
  drawn.add(chart);
  const block = document.querySelector('script[data-chart="' + chart.id + '"]');
  const figure = JSON.parse(block.textContent);
  Plotly.newPlot(chart, figure.data, figure.layout, { displayModeBar: false, responsive: true });
}

// Charts in view are drawn first and all others when the browser has nothing else to do.
loaded.then(() => {
  const charts = [...document.querySelectorAll(".chart")];
  const seen = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => { seen.unobserve(entry.target); draw(entry.target); });
  }, { rootMargin: "300px" });
  charts.forEach((chart) => seen.observe(chart));
  const idle = window.requestIdleCallback || ((call) => setTimeout(call, 50));
  const rest = [...charts];
  const next = () => { const chart = rest.shift(); if (chart) { draw(chart); idle(next, { timeout: 500 }); } else { document.body.dataset.drawn = "all"; } };
  idle(next, { timeout: 500 });
});

// On paper every chart is drawn, at the paper's width, and every fold outside of the browsers is open.
let opened = [];
window.addEventListener("beforeprint", () => {
  document.querySelectorAll(".chart").forEach((chart) => { draw(chart); Plotly.relayout(chart, { width: PRINTED_WIDTH }); });
  opened = [...document.querySelectorAll("details:not([open])")].filter((fold) => !fold.closest(".browser") && !fold.parentElement.closest("details"));
  opened.forEach((fold) => { fold.open = true; });
});
window.addEventListener("afterprint", () => {
  document.querySelectorAll(".chart").forEach((chart) => Plotly.relayout(chart, { width: null, autosize: true }));
  opened.forEach((fold) => { fold.open = false; });
});

// On a phone the rows of a table become cards: each cell carries its column's name.
document.querySelectorAll("table").forEach((table) => {
  const heads = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
  table.querySelectorAll("tbody tr").forEach((row) => [...row.cells].forEach((cell, i) => { if (heads[i]) cell.dataset.label = heads[i]; }));
});

// A click on a picture shows it at its full size, or at the largest that the page holds.
document.addEventListener("click", (event) => {
  const button = event.target.closest ? event.target.closest("button.picture") : null;
  if (!button) return;
  const box = element("dialog", "full"), image = element("img"), close = element("button", "", "close");
  image.src = button.querySelector("img").src;
  image.alt = button.querySelector("img").alt;
  const size = image.naturalWidth + " x " + image.naturalHeight;
  const said = button.dataset.original ? "shown at " + size + ", the store has it at " + button.dataset.original : size;
  if (image.naturalWidth <= 64) image.className = "tiny";
  const bar = element("p", "dim", said + " ");
  bar.append(close);
  box.append(bar, image);
  close.addEventListener("click", () => box.close());
  box.addEventListener("click", (inner) => { if (inner.target === box) box.close(); });
  box.addEventListener("close", () => { box.remove(); button.focus(); });
  document.body.append(box);
  box.showModal();
});
