"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const options = {responsive: true, displaylogo: false, toImageButtonOptions: {format: "svg"}};
function draw(place) {
  const chart = charts[place.dataset.chart];
  Plotly.newPlot(place, chart.data, chart.layout, options);
}
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
}, {rootMargin: "400px"});
for (const place of document.querySelectorAll(".plot")) seen.observe(place);
window.addEventListener("beforeprint", () => document.querySelectorAll(".plot:empty").forEach(draw));
const videos = document.querySelectorAll("video");
for (const video of videos) {
  const toggle = () => video.paused ? video.play() : video.pause();
  video.addEventListener("click", toggle);
  video.addEventListener("keydown", (event) => {
    if (event.key === " " || event.key === "Enter") { event.preventDefault(); toggle(); }
  });
}
const button = document.getElementById("play");
if (button) button.addEventListener("click", () => {
  const start = button.textContent === "Play all";
  for (const video of videos) { if (start) { video.currentTime = 0; video.play(); } else video.pause(); }
  button.textContent = start ? "Pause all" : "Play all";
});
