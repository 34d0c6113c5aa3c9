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

function draw(chart) {
  const block = document.querySelector('script[data-chart="' + chart.id + '"]');
  const figure = JSON.parse(block.textContent);
  Plotly.newPlot(chart, figure.data, figure.layout, { displayModeBar: false, responsive: true });
}

loaded.then(() => {
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "300px" });
  document.querySelectorAll(".chart").forEach((chart) => seen.observe(chart));
});
