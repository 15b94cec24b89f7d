// The page "Labels": one suggestion after the other, and a verdict on each.

import { ask, opened, tell } from "./api.js";
import { drawn, element, frame } from "./dom.js";
import { Stage } from "./stage.js";

const KEYS = { r: "right", w: "wrong", s: "skip" };
const get = (id) => document.getElementById(id);
const stage = new Stage(get("stage"));
let state, suggestion, sending = null;

const number = (value) => value.toLocaleString("en");
const terms = (entries) => entries.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]);

/** Show an answer of the server; with `stay`, the current suggestion stays as long as it has no verdict. */
function show({ suggestions, waiting, verdicts, fault, folder, note }, stay) {
  const first = suggestions[0];
  const same = stay && first && suggestion && first.picture === suggestion.picture && first.detection === suggestion.detection;
  const searched = state.predicts && state.done < state.pictures ? `; ${number(state.done)} of ${number(state.pictures)} pictures searched` : "";
  const none = verdicts.right + verdicts.wrong + verdicts.skip === 0;
  get("count").textContent = fault ? "" : `${number(waiting)} to judge${searched}`;
  get("undo").disabled = none;
  get("sums").replaceChildren(...terms(Object.entries(verdicts).map(([word, count]) => [word === "skip" ? "skipped" : word, number(count)])));
  get("note").textContent = note;
  get("note").hidden = !note;
  get("copy").replaceChildren(...(folder
    ? [element("code", {}, folder), element("br"), "Train with it: ", element("code", {}, `rcnn train ${folder}`)]
    : ["There is no copy yet. The first suggestion that you accept creates it."]));
  if (!same) suggestion = first;
  get("suggestion").hidden = !suggestion && none;
  get("opening").hidden = Boolean(suggestion);
  get("opening").textContent = fault
    || (searched ? "No suggestions so far. Other pictures are still being searched."
      : none ? "There is nothing to judge: the detector suspects no label." : "There is nothing left to judge.");
  for (const word of Object.values(KEYS)) get(word).disabled = !suggestion;
  if (!suggestion) {
    stage.clear();
    get("says").textContent = "";
    get("facts").replaceChildren();
  } else if (!same) draw();
}

function draw() {
  const { labels, size: [height, width], box, object, picture, kind, text } = suggestion, name = state.names[suggestion.label];
  const suspect = object >= 0 ? state.names[labels[object].label] : "";
  get("says").textContent = `${name}${kind === "wrong_class" ? `, not ${suspect}` : ""}: ${text}.`;
  get("facts").replaceChildren(...terms([["picture", suggestion.name], ["score", suggestion.score.toFixed(3)]]));
  get("picture").href = `/pictures/${picture}`;
  stage.picture(`/api/pictures/${picture}/image?run=${state.run}`, width, height, suggestion.name);
  const others = labels.map((label, index) => frame(label.box, index === object ? "suspect" : "truth"));
  const tags = [[box, name], ...(object >= 0 ? [[labels[object].box, `label: ${suspect}`]] : [])];
  stage.layers([...others, frame(box, "suggested")], tags.map(([[x, y], words]) => drawn("text", { "data-x": x, "data-y": y }, words.slice(0, 60))));
  stage.near(box);
}

/** Send a verdict, or undo the last one, and show the next suggestion. */
function send(path, verdict) {
  if (verdict && (sending || !suggestion)) return; // the next suggestion is not on the page yet
  const request = sent(path, verdict, sending);
  sending = request;
  request.finally(() => {
    if (sending === request) sending = null;
  });
}

async function sent(path, verdict, before) {
  await before;
  try {
    const { picture, detection } = suggestion ?? {};
    const body = verdict ? JSON.stringify({ picture, detection, verdict }) : "";
    const answer = await ask(path, {}, { method: "POST", body, headers: { "Content-Type": "application/json" } });
    tell("");
    show(answer, false);
  } catch {
    // the page shows the error already
  }
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const letter = event.key.toLowerCase();
  if (letter in KEYS) send("/api/labels", KEYS[letter]);
  else if (letter === "u" && !get("undo").disabled) send("/api/labels/undo");
  else if (suggestion && letter === "z") stage.near(suggestion.box);
  else if (!suggestion || !stage.zoomKey(letter)) return;
  event.preventDefault();
}

/** There are more suggestions while pictures are predicted, and another browser may send verdicts. */
async function follow() {
  try {
    Object.assign(state, await ask("/api/state"));
    const answer = await ask("/api/labels", suggestion ? { picture: suggestion.picture, detection: suggestion.detection } : {});
    if (!sending) show(answer, true);
  } catch {
    // the page shows the error already
  }
  setTimeout(follow, 2000);
}

async function start() {
  state = await opened(get("opening"));
  if (!state) return;
  addEventListener("keydown", key);
  for (const word of Object.values(KEYS)) get(word).addEventListener("click", () => send("/api/labels", word));
  get("undo").addEventListener("click", () => send("/api/labels/undo"));
  show(await ask("/api/labels"), false);
  setTimeout(follow, 2000);
}

start();
