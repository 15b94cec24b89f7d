// The page "Runs": a table that follows the files, and one run or two side by side, which the address names.

import { ask, reached, tell } from "./api.js";
import { element } from "./dom.js";

const STATES = { ended: "ended", training: "training", silent: "no recent output" };
const get = (id) => document.getElementById(id);
let table = null, drawn = "";

const number = (value, digits = 3) => (value === null ? "\u2013" : value.toFixed(digits));

/** The numbers of those runs in the address that exist. */
function chosen() {
  const known = new Set(table.runs.map((row) => row.run));
  const words = new URLSearchParams(location.search).get("runs");
  const named = (words ?? String(table.first)).split(",").map(Number).filter((run) => known.has(run));
  return named.slice(0, 2);
}

function choose(run, on) {
  const rest = chosen().filter((other) => other !== run), runs = on ? [...rest.slice(-1), run] : rest;
  history.pushState(null, "", `/runs?runs=${runs.join(",")}`);
  draw();
}

function draw() {
  const runs = chosen(), { runs: rows, folder } = table;
  get("opening").hidden = rows.length > 0;
  get("opening").textContent = folder ? `There is no run in ${folder} yet. Runs appear here when they start.` : "There are no runs here. rcnn train writes them to runs/train: start rcnn look with a run, or in the folder that contains runs/train.";
  get("runs").parentElement.hidden = !rows.length;
  get("count").textContent = rows.length ? `${rows.length.toLocaleString("en")} ${rows.length === 1 ? "run" : "runs"} in ${folder}` : "";
  const focused = document.activeElement?.dataset?.run;
  get("runs").querySelector("tbody").replaceChildren(...rows.map((row) => line(row, runs.includes(row.run))));
  if (focused) get("runs").querySelector(`[data-run="${focused}"]`)?.focus();
  document.body.classList.toggle("several", runs.length > 1);
  show(runs);
}

function line(row, on) {
  const input = element("input", { type: "checkbox", checked: on, "data-run": row.run, "aria-label": `Show ${row.name}` });
  input.addEventListener("change", () => choose(row.run, input.checked));
  const epochs = row.planned === null ? `${row.epochs}` : `${row.epochs} of ${row.planned}`;
  const cells = [row.data, row.model, STATES[row.state], epochs, number(row.best), number(row.last), row.written];
  const name = element("th", { scope: "row" }, row.name);
  if (row.note) name.append(element("span", { class: "small" }, row.note));
  return element("tr", { class: row.state }, element("td", {}, input), name, ...cells.map((text) => element("td", {}, text)));
}

/** Show runs, unless the page shows these runs in this state already. */
async function show(runs) {
  const state = JSON.stringify([runs, table.runs.filter((row) => runs.includes(row.run))]);
  if (state === drawn) return;
  drawn = state;
  const { html } = runs.length ? await ask("/api/runs/shown", { runs: runs.join(",") }) : { html: "" };
  if (drawn !== state) return; // other runs were chosen meanwhile
  const parsed = new DOMParser().parseFromString(html, "text/html"); // from the templates of the server, which escape texts
  get("shown").replaceChildren(...parsed.body.childNodes);
}

function follow() {
  const events = new EventSource("/api/runs/events");
  events.addEventListener("open", () => reached(true));
  events.addEventListener("error", () => {
    reached(false);
    if (events.readyState !== EventSource.CLOSED) return;
    ask("/api/runs").then(() => setTimeout(follow, 1000), () => setTimeout(follow, 3000)); // which shows why
  });
  events.addEventListener("message", (event) => {
    tell("");
    table = JSON.parse(event.data);
    draw();
  });
}

addEventListener("popstate", () => table && draw());
follow();
