// The page "Labels": one question after the other about suspected label errors, and a verdict on each.

import { ask, opened, tell } from "./api.js";
import { drawn, element, frame } from "./dom.js";
import { Stage } from "./stage.js";

const VERDICTS = { c: "change", k: "keep", l: "later" };
const DONE = { change: "changed", keep: "kept", later: "for later" };
const get = (id) => document.getElementById(id);
const stage = new Stage(get("stage"));
let state, picture, beside = [], suggestion, sending = null; // `beside`: the open suggestions of the picture, the current one first

const number = (value) => value.toLocaleString("en");
const terms = (entries) => entries.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]);
const keyOf = (one) => [one.picture, one.detection, one.object];
const address = (index) => `/api/pictures/${index}/image?run=${state.run}`;

/** Show an answer of the server; with `stay`, the current suggestion stays as long as it is open. */
function show(answer, stay) {
  const { suggestions, waiting, verdicts, fault, folder, note, undo } = answer, first = suggestions[0];
  const same = stay && first && suggestion && String(keyOf(first)) === String(keyOf(suggestion));
  const searched = state.predicts && state.done < state.pictures ? `; ${number(state.done)} of ${number(state.pictures)} pictures searched` : "";
  const later = verdicts.later ? `, ${number(verdicts.later)} of them for later` : "";
  get("count").textContent = fault ? "" : `${number(waiting)} ${waiting === 1 ? "question" : "questions"}${later}${searched}`;
  get("undo").disabled = !undo;
  get("sums").replaceChildren(...terms(Object.entries(verdicts).map(([word, count]) => [DONE[word], number(count)])));
  get("note").textContent = note;
  get("note").hidden = !note;
  get("copy").replaceChildren(...(folder
    ? [element("code", {}, folder), element("br"), "Train with it: ", element("code", {}, `rcnn train ${folder}`)]
    : ["There is no copy yet. The first change creates it."]));
  picture = answer.picture;
  beside = picture ? suggestions.slice(0, picture.here) : [];
  suggestion = first;
  get("suggestion").hidden = !suggestion && !undo;
  get("opening").hidden = Boolean(suggestion);
  get("opening").textContent = fault
    || (searched ? "No questions so far. Other pictures are still being searched."
      : undo ? "All questions are answered." : "There are no questions: the detections contradict no label.");
  for (const part of document.querySelectorAll(".asks")) part.hidden = !suggestion;
  get("all").hidden = beside.length < 2;
  if (suggestion) {
    get("place").textContent = `${number(picture.position)} of ${number(picture.suggestions)} in this picture`;
    get("all").firstElementChild.textContent = `Change all ${number(beside.length)} in this picture`;
    draw(same);
  } else {
    stage.clear();
    for (const id of ["says", "place", "facts"]) get(id).replaceChildren();
  }
  const next = suggestions[beside.length];
  if (next) new Image().src = address(next.picture); // so that the browser has it when it is its turn
}

function draw(same) {
  const { box, object, detection, question, score, label } = suggestion, { labels, size: [height, width] } = picture;
  const suspect = labels.find((one) => object >= 0 && one.object === object), others = beside.slice(1);
  if (!same) {
    get("says").textContent = question;
    get("facts").replaceChildren(...terms([["picture", picture.name], ["score", score.toFixed(3)]]));
    get("picture").href = `/pictures/${picture.index}`;
    for (const word of ["change", "keep"]) get(word).firstElementChild.textContent = suggestion[word];
    stage.picture(address(picture.index), width, height, picture.name);
  }
  const frames = labels.filter((one) => one !== suspect).map((one) => frame(one.box, "truth"));
  frames.push(...others.map((one) => frame(one.box, "further")));
  const tags = others.map((one) => [one.box, one.detection >= 0 ? `${state.names[one.label]}?` : `no ${state.names[one.label]}?`]);
  if (suspect) {
    frames.push(frame(suspect.box, "suspect"));
    tags.unshift([suspect.box, `label: ${state.names[suspect.label]}`]);
  }
  if (detection >= 0) {
    frames.push(frame(box, "suggested"));
    tags.unshift([box, state.names[label]]);
  }
  stage.layers(frames, tags.map(([[x, y], words]) => drawn("text", { "data-x": x, "data-y": y }, words.slice(0, 60))));
  if (!same) near();
}

/** Show the suggestion and the label that it is about. */
function near() {
  const boxes = [suggestion.box, ...picture.labels.filter((one) => one.object >= 0 && one.object === suggestion.object).map((one) => one.box)];
  stage.near(boxes[0].map((_, side) => (side < 2 ? Math.min : Math.max)(...boxes.map((box) => box[side]))));
}

/** Send a verdict on suggestions, or undo the last step, and show the next suggestion. */
function send(path, verdict, chosen = beside.slice(0, 1)) {
  if (verdict && (sending || !chosen.length)) return; // the next suggestion is not on the page yet
  const request = sent(path, verdict && JSON.stringify({ verdict, keys: chosen.map(keyOf) }), sending);
  sending = request;
  request.finally(() => {
    if (sending === request) sending = null;
  });
}

async function sent(path, body = "", before = null) {
  await before;
  try {
    const answer = await ask(path, {}, { method: "POST", body, headers: { "Content-Type": "application/json" } });
    tell("");
    show(answer, false);
  } catch {
    // the page shows the error already
  }
}

const judge = (verdict) => send("/api/labels", verdict);
const undo = () => send("/api/labels/undo");
const all = () => beside.length > 1 && send("/api/labels", "change", beside);

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const letter = event.key.toLowerCase();
  if (letter in VERDICTS) judge(VERDICTS[letter]);
  else if (letter === "a") all();
  else if (letter === "u" && !get("undo").disabled) undo();
  else if (suggestion && letter === "z") near();
  else if (!suggestion || !stage.zoomKey(letter)) return;
  event.preventDefault();
}

/** There are more suggestions while pictures are predicted, and another browser may send verdicts. */
async function follow() {
  try {
    Object.assign(state, await ask("/api/state"));
    const { picture: index, detection, object } = suggestion ?? {};
    const answer = await ask("/api/labels", suggestion ? { picture: index, detection, object } : {});
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
  for (const word of Object.values(VERDICTS)) get(word).addEventListener("click", () => judge(word));
  get("all").addEventListener("click", all);
  get("undo").addEventListener("click", undo);
  show(await ask("/api/labels"), false);
  setTimeout(follow, 2000);
}

start();
