// The page "Pictures": all pictures or one of them. The state is kept in the address.

import { ask, opened, tell } from "./api.js";
import { element, slider } from "./dom.js";
import { Large } from "./large.js";
import { Wall } from "./wall.js";

const FILTERS = ["list", "class", "size", "mistake", "score"];
const get = (id) => document.getElementById(id);
let state, wall, large, chosen = {};

const requested = () => Number(location.pathname.match(/^\/pictures\/(\d{1,11})$/)?.[1] ?? NaN);

function read() {
  const words = new URLSearchParams(location.search);
  chosen = Object.fromEntries(FILTERS.map((name) => [name, words.get(name) ?? ""]));
}

function address(path) {
  const words = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value !== ""));
  return words.size ? `${path}?${words}` : path;
}

const score = () => (chosen.score === "" ? state.threshold : Number(chosen.score));

function open(index) {
  tell("");
  history.pushState(null, "", address(`/pictures/${index}`));
  route();
}

/** Show what the address names. */
async function route() {
  const picture = requested(), alone = !Number.isNaN(picture);
  const last = large.index;
  read();
  get("to-explain").href = alone ? `/explain/${picture}` : "/explain/0";
  get("wall-page").hidden = alone;
  get("large-page").hidden = !alone;
  if (alone) {
    if (!wall.indices.length) await choose();
    const position = wall.indices.indexOf(picture);
    get("position").textContent = position < 0 ? "" : `${(position + 1).toLocaleString("en")} of ${wall.indices.length.toLocaleString("en")}`;
    get("previous").disabled = position <= 0;
    get("next").disabled = position >= wall.indices.length - 1;
    await large.show(picture, score());
  } else {
    document.title = "Pictures: rcnn look";
    large.index = undefined;
    filters();
    await choose();
    if (last !== undefined) wall.reveal(last);
  }
}

/** Request the pictures that match the filters, and show them. */
async function choose() {
  const { indices, pictures, done } = await ask("/api/pictures", { ...chosen, score: score() });
  wall.show(indices, score());
  const all = indices.length === pictures ? "" : ` of ${pictures.toLocaleString("en")}`;
  const predicted = state.predicts && done < pictures ? `; ${done.toLocaleString("en")} predicted so far` : "";
  const none = state.drops ? "No pictures yet. Drop one here." : "No pictures. Start rcnn look with a run, a data set or a folder.";
  get("count").textContent = pictures ? `${indices.length.toLocaleString("en")}${all} ${pictures === 1 ? "picture" : "pictures"}${predicted}` : "";
  get("none").hidden = indices.length > 0;
  get("none").textContent = pictures ? `No ${predicted && chosen.mistake ? "predicted " : ""}picture matches the filters.` : none;
}

function filters() {
  const options = {
    list: state.lists.length > 1 ? state.lists.map((name) => [name, name]) : [],
    class: state.names.map((name, label) => [label, name]),
    size: state.names.length ? state.sizes.map((name) => [name, name]) : [],
    mistake: Object.entries(state.mistakes),
  };
  const made = Object.entries(options).filter(([, all]) => all.length).map(([name, all]) => {
    const select = element("select", { name }, element("option", { value: "" }, "all"));
    select.append(...all.map(([value, text]) => element("option", { value, selected: String(value) === chosen[name] }, text)));
    select.addEventListener("change", () => filtered(name, select.value));
    return element("label", {}, name, select);
  });
  if (state.predicts) {
    const control = slider("score from", state.least, 1, 0.001, Math.max(state.least, score()), (value) => filtered("score", String(value)));
    control.classList.add("score");
    made.push(control);
  }
  get("filters").replaceChildren(...made);
  get("filters").hidden = !made.length;
}

function filtered(name, value) {
  chosen[name] = value;
  history.replaceState(null, "", address("/pictures"));
  clearTimeout(filtered.waiting);
  filtered.waiting = setTimeout(choose, name === "score" ? 40 : 0);
}

function step(by) {
  const next = wall.indices[wall.indices.indexOf(requested()) + by];
  if (next === undefined) return;
  history.replaceState(null, "", address(`/pictures/${next}`));
  route();
}

function back() {
  history.pushState(null, "", address("/pictures"));
  route();
}

function key(event) {
  if (Number.isNaN(requested()) || event.ctrlKey || event.metaKey || event.altKey) return;
  const { stage } = large, slides = event.target.matches?.("input[type=range], select");
  const zoomed = event.target === get("stage") && stage.zoomed;
  const moves = { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, -0.2], ArrowDown: [0, 0.2] };
  if (zoomed && event.key in moves) stage.move(...moves[event.key]);
  else if (event.key === "Escape") back();
  else if (event.key === "ArrowRight" && !slides) step(1);
  else if (event.key === "ArrowLeft" && !slides) step(-1);
  else if (event.key === "t") large.toggle(["truth"]);
  else if (event.key === "d") large.toggle(["right", "wrong", "plain"]);
  else if (!stage.zoomKey(event.key)) return;
  event.preventDefault();
}

async function predict(file) {
  if (!file) return;
  if (!state.drops) return tell("No model that predicts classes is loaded. Start rcnn look with one to predict pictures.");
  if (file.size > 64e6) return tell("This picture is larger than 64 MB.");
  tell("Predicting the picture.");
  const headers = { "Content-Type": "application/octet-stream", "X-Name": encodeURIComponent(file.name.slice(0, 200)) };
  const { index } = await ask("/api/pictures", {}, { method: "POST", body: file, headers });
  state = await ask("/api/state");
  chosen = { ...Object.fromEntries(FILTERS.map((name) => [name, ""])), score: chosen.score };
  await choose();
  open(index);
}

function listen() {
  addEventListener("popstate", route);
  addEventListener("keydown", key);
  get("back").addEventListener("click", back);
  get("previous").addEventListener("click", () => step(-1));
  get("next").addEventListener("click", () => step(1));
  get("filters").addEventListener("submit", (event) => event.preventDefault());
  get("file").addEventListener("change", (event) => predict(event.target.files[0]).finally(() => (event.target.value = "")));
  const dropping = get("dropping");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    dropping.hidden = !event.dataTransfer.types.includes("Files");
  });
  addEventListener("dragleave", (event) => (dropping.hidden = event.relatedTarget === null || dropping.hidden));
  addEventListener("drop", (event) => {
    event.preventDefault();
    dropping.hidden = true;
    predict(event.dataTransfer.files[0]);
  });
}

/** Follow the prediction of the other pictures, and whether the server responds. */
async function follow() {
  try {
    const { done, pictures } = await ask("/api/state");
    const changed = done !== state.done || pictures !== state.pictures;
    Object.assign(state, { done, pictures });
    if (changed && Number.isNaN(requested())) await choose();
  } catch {
    // the page shows the error already
  }
  setTimeout(follow, 2000);
}

async function start() {
  state = await opened(get("opening").querySelector("p"));
  if (!state) return;
  get("opening").remove();
  get("title").textContent = state.title || "Pictures";
  get("notes").hidden = !state.notes.length;
  get("notes").querySelector("ul").append(...state.notes.map((text) => element("li", {}, text)));
  document.querySelector(".file").hidden = !state.drops;
  read();
  wall = new Wall(state.run, open);
  large = new Large(state, (value) => {
    chosen.score = String(value);
    history.replaceState(null, "", address(location.pathname));
  });
  listen();
  await route();
  setTimeout(follow, 2000);
}

start();
