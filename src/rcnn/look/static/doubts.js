// The page "Doubtful labels": one suggestion after the other, and what is said of it.

import { ask, opened, tell } from "./api.js";
import { drawn, element } from "./dom.js";
import { Stage } from "./stage.js";

const KEYS = { r: "right", w: "wrong", s: "skip" };
const get = (id) => document.getElementById(id);
const stage = new Stage(get("stage"));
let state, doubt, sending = null;

const number = (value) => value.toLocaleString("en");
const same = (one, other) => one && other && one.place === other.place && one.detection === other.detection;

/** Show what the server tells; the suggestion that is being looked at stays, as long as nobody has judged it. */
function show(told, stay) {
  const { doubts, waiting, said, fault, folder, note } = told;
  const still = stay && same(doubts[0], doubt);
  const read = state.detects && state.done < state.pictures ? `; ${number(state.done)} of ${number(state.pictures)} pictures are looked through` : "";
  get("count").textContent = fault ? "" : `${number(waiting)} to judge${read}`;
  get("undo").disabled = !(said.right + said.wrong + said.skip);
  get("sums").replaceChildren(...Object.entries(said).flatMap(([word, count]) => [element("dt", {}, word === "skip" ? "skipped" : word), element("dd", {}, number(count))]));
  get("note").textContent = note;
  get("note").hidden = !note;
  get("copy").replaceChildren(...copied(folder));
  if (!still) doubt = doubts[0];
  get("doubt").hidden = !doubt && get("undo").disabled;
  get("opening").hidden = Boolean(doubt);
  get("opening").textContent = fault || none(read, get("undo").disabled);
  for (const word of Object.values(KEYS)) get(word).disabled = !doubt;
  if (!doubt) {
    stage.clear();
    get("says").textContent = "";
    get("facts").replaceChildren();
  } else if (!still) draw();
}

function none(read, nothingSaid) {
  if (read) return "No doubts so far; more pictures are being looked through.";
  return nothingSaid ? "There is nothing to judge: the detector doubts no label." : "There is nothing to judge any more: no other label is doubted.";
}

function copied(folder) {
  if (!folder) return ["None yet; the first suggestion that is right makes one."];
  return [element("code", {}, folder), element("br"), "Train with it: ", element("code", {}, `rcnn train ${folder}`)];
}

function draw() {
  const { labels, size: [height, width], box, object, place } = doubt, name = state.names[doubt.label];
  const about = object >= 0 ? state.names[labels[object].label] : "";
  get("says").textContent = {
    missing_label: `${name}: ${doubt.says}.`, wrong_class: `${name}, not ${about}: ${doubt.says}.`, bad_box: `${name}: ${doubt.says}.`,
  }[doubt.kind];
  const facts = { picture: doubt.picture, score: doubt.score.toFixed(3) };
  get("facts").replaceChildren(...Object.entries(facts).flatMap(([word, text]) => [element("dt", {}, word), element("dd", {}, text)]));
  get("picture").href = `/pictures/${place}`;
  stage.picture(`/api/pictures/${place}/image?run=${state.run}`, width, height, doubt.picture);
  const others = labels.map((one, index) => rect(one.box, index === object ? "doubted" : "truth"));
  const tags = [[box, name], ...(object >= 0 ? [[labels[object].box, `label: ${about}`]] : [])];
  stage.layers([...others, rect(box, "doubt")], tags.map(([[x, y], text]) => drawn("text", { "data-x": x, "data-y": y }, text.slice(0, 60))));
  stage.near(box);
}

function rect([left, top, right, bottom], name) {
  const place = { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
  return drawn("g", {}, drawn("rect", { ...place, class: "under" }), drawn("rect", { ...place, class: name }));
}

/** Send a verdict, or take the last one back, and go on with the next suggestion. */
function send(path, verdict) {
  if (verdict && (sending || !doubt)) return; // nobody has seen yet what comes next
  const mine = sent(path, verdict, sending);
  sending = mine;
  mine.finally(() => {
    if (sending === mine) sending = null;
  });
}

async function sent(path, verdict, before) {
  await before;
  try {
    const { place, detection } = doubt ?? {};
    const body = verdict ? JSON.stringify({ place, detection, verdict }) : "";
    const told = await ask(path, {}, { method: "POST", body, headers: { "Content-Type": "application/json" } });
    tell("");
    show(told, false);
  } catch {
    // it has been told on the page
  }
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const letter = event.key.toLowerCase();
  if (letter in KEYS) send("/api/doubts", KEYS[letter]);
  else if (letter === "u" && !get("undo").disabled) send("/api/doubts/undo");
  else if (!doubt) return;
  else if (letter === "+" || letter === "=") stage.zoom(0.7);
  else if (letter === "-") stage.zoom(1 / 0.7);
  else if (letter === "0") stage.fit();
  else if (letter === "z") stage.near(doubt.box);
  else return;
  event.preventDefault();
}

/** More doubts come while pictures are predicted, and another browser may judge them. */
async function follow() {
  try {
    Object.assign(state, await ask("/api/state"));
    const told = await ask("/api/doubts", doubt ? { place: doubt.place, detection: doubt.detection } : {});
    if (!sending) show(told, true);
  } catch {
    // it has been told on the page
  }
  setTimeout(follow, 2000);
}

async function start() {
  state = await opened(get("opening"));
  if (!state) return;
  addEventListener("keydown", key);
  for (const word of Object.values(KEYS)) get(word).addEventListener("click", () => send("/api/doubts", word));
  get("undo").addEventListener("click", () => send("/api/doubts/undo"));
  show(await ask("/api/doubts"), false);
  setTimeout(follow, 2000);
}

start();
