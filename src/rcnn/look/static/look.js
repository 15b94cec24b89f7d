// The page "Pictures": which of its two views is shown, and from what. Its state is in the address.

import { ask, opened, tell } from "./api.js";
import { element, slider } from "./dom.js";
import { Large } from "./large.js";
import { Wall } from "./wall.js";

const FILTERS = ["list", "class", "size", "mistake", "score"];
const get = (id) => document.getElementById(id);
let state, wall, large, chosen = {};

const place = () => Number(location.pathname.match(/^\/pictures\/(\d{1,11})$/)?.[1] ?? NaN);

function read() {
  const words = new URLSearchParams(location.search);
  chosen = Object.fromEntries(FILTERS.map((name) => [name, words.get(name) ?? ""]));
}

function address(path) {
  const words = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value !== ""));
  return words.size ? `${path}?${words}` : path;
}

const score = () => (chosen.score === "" ? state.threshold : Number(chosen.score));

function open(at) {
  tell("");
  history.pushState(null, "", address(`/pictures/${at}`));
  route();
}

/** Show what the address says. */
async function route() {
  const at = place(), alone = !Number.isNaN(at);
  const last = large.place;
  read();
  get("to-inside").href = alone ? `/inside/${at}` : "/inside/0";
  get("wall-page").hidden = alone;
  get("large-page").hidden = !alone;
  if (alone) {
    if (!wall.places.length) await choose();
    const index = wall.places.indexOf(at);
    get("place").textContent = index < 0 ? "" : `${(index + 1).toLocaleString("en")} of ${wall.places.length.toLocaleString("en")}`;
    get("previous").disabled = index <= 0;
    get("next").disabled = index >= wall.places.length - 1;
    await large.show(at, score());
  } else {
    document.title = "Pictures: rcnn look";
    large.place = undefined;
    filters();
    await choose();
    if (last !== undefined) wall.reveal(last);
  }
}

/** Ask which pictures the filters choose, and show them. */
async function choose() {
  const { places, pictures, done } = await ask("/api/pictures", { ...chosen, score: score() });
  wall.show(places, score());
  const all = places.length === pictures ? "" : ` of ${pictures.toLocaleString("en")}`;
  const predicted = state.detects && done < pictures ? `; ${done.toLocaleString("en")} predicted so far` : "";
  const none = state.detects ? "No pictures yet: drop one here." : "No pictures: start rcnn look with a run, a data set or a folder.";
  get("count").textContent = pictures ? `${places.length.toLocaleString("en")}${all} ${pictures === 1 ? "picture" : "pictures"}${predicted}` : "";
  get("none").hidden = places.length > 0;
  get("none").textContent = pictures ? `No picture${predicted && chosen.mistake ? " that has been predicted" : ""} has what the filters ask for.` : none;
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
  if (state.detects) {
    const one = slider("score from", state.least, 1, 0.001, Math.max(state.least, score()), (value) => filtered("score", String(value)));
    one.classList.add("score");
    made.push(one);
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
  const next = wall.places[wall.places.indexOf(place()) + by];
  if (next === undefined) return;
  history.replaceState(null, "", address(`/pictures/${next}`));
  route();
}

function back() {
  history.pushState(null, "", address("/pictures"));
  route();
}

function key(event) {
  if (Number.isNaN(place()) || event.ctrlKey || event.metaKey || event.altKey) return;
  const { stage } = large, slides = event.target.matches?.("input[type=range], select");
  const zoomed = event.target === get("stage") && stage.zoomed;
  const moves = { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, -0.2], ArrowDown: [0, 0.2] };
  if (zoomed && event.key in moves) stage.move(...moves[event.key]);
  else if (event.key === "Escape") back();
  else if (event.key === "ArrowRight" && !slides) step(1);
  else if (event.key === "ArrowLeft" && !slides) step(-1);
  else if (event.key === "+" || event.key === "=") stage.zoom(0.7);
  else if (event.key === "-") stage.zoom(1 / 0.7);
  else if (event.key === "0") stage.fit();
  else if (event.key === "t") large.toggle(["truth"]);
  else if (event.key === "d") large.toggle(["right", "wrong", "plain"]);
  else return;
  event.preventDefault();
}

async function predict(file) {
  if (!file) return;
  if (!state.detects) return tell("There is no model here that detects; start rcnn look with one to have pictures predicted.");
  if (file.size > 64e6) return tell("This picture has more than 64 MB.");
  tell("The picture is being predicted.");
  const headers = { "Content-Type": "application/octet-stream", "X-Name": encodeURIComponent(file.name.slice(0, 200)) };
  const { place: at } = await ask("/api/pictures", {}, { method: "POST", body: file, headers });
  state = await ask("/api/state");
  chosen = { ...Object.fromEntries(FILTERS.map((name) => [name, ""])), score: chosen.score };
  await choose();
  open(at);
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

/** Follow the prediction of the other pictures, and whether the server is there. */
async function follow() {
  try {
    const { done, pictures } = await ask("/api/state");
    const news = done !== state.done || pictures !== state.pictures;
    Object.assign(state, { done, pictures });
    if (news && Number.isNaN(place())) await choose();
  } catch {
    // it has been told on the page
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
  document.querySelector(".file").hidden = !state.detects;
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
