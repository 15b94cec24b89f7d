// The slider of the score threshold, and pictures that open large. All numbers are counted from the bins of scores
// that the page holds; names are those of the library.

/** Bins are steps from the one before, right and wrong detections, in one list. Sums of the bins from each threshold on: how many detections are kept there. */
function kept(bins, steps) {
  const right = new Array(steps + 1).fill(0);
  const wrong = new Array(steps + 1).fill(0);
  for (let index = 0, place = 0; index < bins.length; index += 3) {
    place += bins[index];
    right[place] = bins[index + 1];
    wrong[place] = bins[index + 2];
  }
  for (let place = steps - 1; place >= 0; place--) {
    right[place] += right[place + 1];
    wrong[place] += wrong[place + 1];
  }
  return { right, wrong };
}

/** Counts and ratios of a class at a threshold; ratios are null without objects. */
function countsAt(one, place) {
  const [right, wrong] = [one.kept.right[place], one.kept.wrong[place]];
  const row = { right, wrong, lost: one.objects - right, precision: null, recall: null, f1: null };
  if (one.objects) {
    row.precision = right + wrong ? right / (right + wrong) : 1;
    row.recall = right / one.objects;
    const total = row.precision + row.recall;
    row.f1 = total ? (2 * row.precision * row.recall) / total : 0;
  }
  return row;
}

/** The row of all classes: sums of counts, means of ratios over the classes with objects. */
function together(rows) {
  const all = {};
  for (const name of ["right", "wrong", "lost"]) all[name] = rows.reduce((sum, row) => sum + row[name], 0);
  const known = rows.filter((row) => row.f1 !== null);
  for (const name of ["precision", "recall", "f1"]) {
    all[name] = known.length ? known.reduce((sum, row) => sum + row[name], 0) / known.length : null;
  }
  return all;
}

const shown = (value, digits = 3) => (value === null ? "\u2013" : value.toFixed(digits));

function connect(panel) {
  const data = JSON.parse(panel.querySelector("script[type='application/json']").textContent);
  const { steps, threshold, plane } = data;
  const classes = data.classes.map((one) => ({ ...one, kept: kept(one.bins, steps) }));
  const slider = panel.querySelector("input[type=range]");
  const output = panel.querySelector("output");
  const back = panel.querySelector("button");
  const mark = panel.querySelector(".mark");
  const rows = [...panel.querySelectorAll(".counts tbody tr")];

  function show() {
    const place = Number(slider.value);
    const score = place / (steps - 1);
    const counted = classes.map((one) => countsAt(one, place));
    counted.push(together(counted));
    output.value = shown(score);
    rows.forEach((row, index) => {
      for (const cell of row.querySelectorAll("[data-of]")) {
        const name = cell.dataset.of;
        const value = counted[index][name];
        cell.textContent = name in { right: 0, wrong: 0, lost: 0 } ? value.toLocaleString("en") : shown(value);
      }
    });
    mark.setAttribute("transform", `translate(${plane.left + score * plane.width} 0)`);
    for (const dot of panel.querySelectorAll(".dot")) {
      const { precision, recall } = counted[Number(dot.dataset.row)];
      dot.setAttribute("cx", plane.left + recall * plane.width);
      dot.setAttribute("cy", plane.top + (1 - precision) * plane.height);
    }
    const all = counted[counted.length - 1];
    slider.setAttribute(
      "aria-valuetext",
      `${shown(score)}: ${all.right} right, ${all.wrong} wrong, ${all.lost} lost, F1 ${shown(all.f1)}`,
    );
  }

  function move(value) {
    slider.value = Math.round(value);
    show();
  }

  const picture = mark.ownerSVGElement;
  const follow = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
    move(((point.x - plane.left) / plane.width) * (steps - 1));
  };
  picture.classList.add("drag");
  picture.addEventListener("pointerdown", (event) => {
    picture.setPointerCapture(event.pointerId);
    follow(event);
  });
  picture.addEventListener("pointermove", (event) => {
    if (picture.hasPointerCapture(event.pointerId)) follow(event);
  });
  slider.addEventListener("input", show);
  back.addEventListener("click", () => move(threshold));
  move(threshold);
  slider.disabled = back.disabled = false;
}

function enlarge(dialog) {
  const large = dialog.querySelector("img");
  for (const button of document.querySelectorAll("button.picture")) {
    button.disabled = false;
    button.addEventListener("click", () => {
      const small = button.querySelector("img");
      large.src = small.src;
      large.alt = small.alt;
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target === large) dialog.close();
  });
}

document.querySelectorAll(".threshold").forEach(connect);
enlarge(document.getElementById("large"));
