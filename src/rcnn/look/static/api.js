// What the page asks the server for. The names of what comes back are those of look/api.py.

const gone = document.getElementById("gone");
const said = document.getElementById("said");

/** Say whether the server answers. */
export function reached(answers) {
  gone.hidden = answers;
}

/** Ask for JSON; a server that does not answer and a refusal are told on the page, and raised. */
export async function ask(path, query = {}, options = {}) {
  const words = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "" && value !== null));
  let response;
  try {
    response = await fetch(`${path}?${words}`, options);
  } catch (error) {
    reached(false);
    throw error;
  }
  reached(true);
  const answer = response.headers.get("content-type")?.startsWith("application/json") ? await response.json() : null;
  if (!response.ok) {
    const shut = "This browser is not let in; open the address that rcnn look printed last.";
    tell(answer?.error ?? (response.status === 403 ? shut : `The server failed with this (${response.status}); see its terminal.`));
    throw new Error(`${response.status} ${path}`);
  }
  return answer;
}

/** The state of the server, once all is read; until then, and if that fails, the place says so. */
export async function opened(place) {
  for (;;) {
    const state = await ask("/api/state").catch(() => ({ ready: false, failed: "", read: [0, 0] }));
    if (state.ready) return state;
    if (state.failed) {
      place.textContent = state.failed;
      return null;
    }
    const [done, images] = state.read.map((number) => number.toLocaleString("en"));
    place.textContent = state.read[1] ? `The labels are being read: ${done} of ${images} images.` : "The pictures are being read.";
    await new Promise((go) => setTimeout(go, 150));
  }
}

/** Say a sentence at the foot of the page; nothing takes it away. */
export function tell(text) {
  said.textContent = text;
  said.hidden = !text;
}
