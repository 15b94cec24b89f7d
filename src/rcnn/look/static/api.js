// Requests to the server. The keys of the answers are those of look/api.py.

const gone = document.getElementById("gone");
const message = document.getElementById("message");

/** Show or hide the notice that the server does not respond. */
export function reached(answers) {
  gone.hidden = answers;
}

/** Request JSON. If the server does not respond or refuses, the page shows it, and an error is thrown. */
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
    const denied = "This browser has no access. Open the address that rcnn look printed last.";
    tell(answer?.error ?? (response.status === 403 ? denied : `The request failed (${response.status}). The terminal of rcnn look has the details.`));
    throw new Error(`${response.status} ${path}`);
  }
  return answer;
}

/** Wait until the server has read everything, and return its state; null if that failed. Progress goes into `status`. */
export async function opened(status) {
  for (;;) {
    const state = await ask("/api/state").catch(() => ({ ready: false, failed: "", read: [0, 0] }));
    if (state.ready) return state;
    if (state.failed) {
      status.textContent = state.failed;
      return null;
    }
    const [done, images] = state.read.map((number) => number.toLocaleString("en"));
    status.textContent = state.read[1] ? `Reading the labels: ${done} of ${images} images.` : "Reading the pictures.";
    await new Promise((go) => setTimeout(go, 150));
  }
}

/** Show a sentence at the bottom of the page until the next one. */
export function tell(text) {
  message.textContent = text;
  message.hidden = !text;
}
