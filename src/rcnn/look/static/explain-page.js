// The page "Explain" of the server.

import { ask, opened } from "./api.js";
import { Explain } from "./explain.js";
import { unpacked } from "./explanation.js";

const get = (id) => document.getElementById(id);
const requested = () => Number(location.pathname.match(/^\/explain\/(\d{1,11})$/)?.[1] ?? 0);
const explain = new Explain(document);
let state, shown;

async function open() {
  const index = (shown = requested());
  get("previous").disabled = index <= 0;
  get("next").disabled = index >= state.pictures - 1;
  get("picture").href = `/pictures/${index}`;
  get("picture").hidden = false;
  get("opening").hidden = false;
  get("opening").textContent = "Running the network.";
  const answer = await ask(`/api/pictures/${index}/explain`);
  if (requested() !== index) return; // another picture was opened meanwhile
  get("name").textContent = answer.name;
  document.title = `Explain: ${answer.name}`;
  get("position").textContent = `${(index + 1).toLocaleString("en")} of ${state.pictures.toLocaleString("en")}`;
  get("opening").textContent = answer.fault;
  get("opening").hidden = !answer.fault;
  get("explain").hidden = Boolean(answer.fault);
  if (!answer.fault) explain.show(await unpacked(answer), `/api/pictures/${index}/image?run=${state.run}`, answer.name);
}

function step(by) {
  const next = requested() + by;
  if (next < 0 || next >= state.pictures) return;
  const show = new URLSearchParams(location.hash.slice(1)).get("show");
  history.pushState(null, "", `/explain/${next}${show ? `#show=${show}` : ""}`);
  open();
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input, select")) return;
  if (event.key === "ArrowRight") step(1);
  else if (event.key === "ArrowLeft") step(-1);
  else explain.stage.zoomKey(event.key);
}

async function start() {
  state = await opened(get("opening"));
  if (!state) return;
  const none = state.drops ? "There are no pictures yet. Drop one on the page Pictures." : "There are no pictures here. Start rcnn look with a model and pictures.";
  get("opening").textContent = state.pictures ? "" : none;
  if (!state.pictures) return;
  document.querySelector(".steps").hidden = false;
  addEventListener("popstate", () => requested() !== shown && open());
  addEventListener("keydown", key);
  get("previous").addEventListener("click", () => step(-1));
  get("next").addEventListener("click", () => step(1));
  await open();
}

start();
