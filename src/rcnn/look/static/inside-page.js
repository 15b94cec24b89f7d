// The page "Inside the RPN" of the server.

import { ask, opened } from "./api.js";
import { Inside } from "./inside.js";
import { unpacked } from "./insides.js";

const get = (id) => document.getElementById(id);
const place = () => Number(location.pathname.match(/^\/inside\/(\d{1,11})$/)?.[1] ?? 0);
const inside = new Inside(document);
let state, shown;

async function open() {
  const at = (shown = place());
  get("previous").disabled = at <= 0;
  get("next").disabled = at >= state.pictures - 1;
  get("picture").href = `/pictures/${at}`;
  get("picture").hidden = false;
  get("opening").hidden = false;
  get("opening").textContent = "The network looks at the picture.";
  const answer = await ask(`/api/pictures/${at}/inside`);
  if (place() !== at) return; // another one was opened meanwhile
  get("name").textContent = answer.name;
  document.title = `Inside the RPN: ${answer.name}`;
  get("place").textContent = `${(at + 1).toLocaleString("en")} of ${state.pictures.toLocaleString("en")}`;
  get("opening").textContent = answer.fault;
  get("opening").hidden = !answer.fault;
  get("inside").hidden = Boolean(answer.fault);
  if (!answer.fault) inside.show(await unpacked(answer), `/api/pictures/${at}/image?run=${state.run}`, answer.name);
}

function step(by) {
  const next = place() + by;
  if (next < 0 || next >= state.pictures) return;
  const show = new URLSearchParams(location.hash.slice(1)).get("show");
  history.pushState(null, "", `/inside/${next}${show ? `#show=${show}` : ""}`);
  open();
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input, select")) return;
  if (event.key === "ArrowRight") step(1);
  else if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "+" || event.key === "=") inside.stage.zoom(0.7);
  else if (event.key === "-") inside.stage.zoom(1 / 0.7);
  else if (event.key === "0") inside.stage.fit();
}

async function start() {
  state = await opened(get("opening"));
  if (!state) return;
  const none = state.detects ? "There are no pictures yet; drop one on the page Pictures." : "There are no pictures here: start rcnn look with a model and pictures.";
  get("opening").textContent = state.pictures ? "" : none;
  if (!state.pictures) return;
  document.querySelector(".steps").hidden = false;
  addEventListener("popstate", () => place() !== shown && open());
  addEventListener("keydown", key);
  get("previous").addEventListener("click", () => step(-1));
  get("next").addEventListener("click", () => step(1));
  await open();
}

start();
