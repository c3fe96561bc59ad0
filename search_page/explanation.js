// Shows an image in a dialog, then why it was found; `element`, `props` and `watch` are Gradio's.
document.getElementById("tpas-dialog")?.remove();
const dialog = document.createElement("dialog");
dialog.id = "tpas-dialog";
dialog.setAttribute("aria-label", "An image that was found");
(element.closest(".gradio-container") ?? document.body).append(dialog);

let asked = null; // the data of the card that was chosen
const same = (one, other) => ["answer", "own", "image"].every((name) => one[name] === other[name]);

document.addEventListener("tpas-asked", (event) => {
  const { dataset } = event.detail;
  asked = { ...dataset };
  dialog.innerHTML =
    '<div class="tpas-why tpas-waiting" role="status"><figure class="tpas-heat"></figure><span class="tpas-spinner"></span>' +
    '<button type="button" class="tpas-close" data-close aria-label="Close">×</button></div>';
  const small = event.detail.querySelector("img"); // until the large one is here
  if (small) {
    dialog.querySelector("figure").append(small.cloneNode());
    dialog.querySelector("figure").style.setProperty("--ratio", small.naturalWidth / small.naturalHeight);
  }
  if (!dialog.open) dialog.showModal();
});

watch("value", () => {
  const content = document.createElement("template");
  content.innerHTML = props.value;
  const answer = content.content.querySelector("[data-request]");
  if (!dialog.open || !asked || (answer?.dataset.answer !== undefined && !same(answer.dataset, asked))) return;
  const { scrollTop } = dialog;
  const isFirst = dialog.querySelector(".tpas-waiting");
  const before = [...dialog.childNodes];
  const [clip, again] = [dialog, content.content].map((part) => part.querySelector("video"));
  dialog.append(content.content);
  if (clip && clip.src === again?.src) keepPlaying(clip.parentElement, again.parentElement);
  for (const part of before) part.remove();
  if (!dialog.querySelector("[data-close]")) {
    dialog.insertAdjacentHTML("beforeend", '<button type="button" class="tpas-button" data-close>Close</button>');
  }
  dialog.scrollTop = isFirst ? 0 : scrollTop;
  (dialog.querySelector("input:checked") ?? dialog.querySelector("[data-close]")).focus({ preventScroll: true });
});

// A clip stands at the moment, and the box goes with the person, from the first to the last sight.
const NEAR_S = 0.3;
// Only what moves at once goes on playing; elsewhere it is brought back to where it was.
const keepPlaying = (clip, place) => {
  if (place.moveBefore) {
    place.parentElement.moveBefore(clip, place);
    place.remove();
    return;
  }
  const video = clip.querySelector("video");
  const { currentTime, paused } = video;
  place.replaceWith(clip);
  video.currentTime = currentTime;
  if (!paused) video.play();
};
const drawBox = (video, time = video.currentTime) => {
  const box = video.parentElement?.querySelector(".tpas-box");
  if (!box) return;
  const boxes = JSON.parse(box.dataset.boxes);
  box.hidden = !boxes.length || time < boxes[0][0] - NEAR_S || time > boxes.at(-1)[0] + NEAR_S;
  if (box.hidden) return;
  const after = boxes.find(([at]) => at >= time) ?? boxes.at(-1);
  const before = boxes.findLast(([at]) => at <= time) ?? boxes[0];
  const share = after[0] > before[0] ? (time - before[0]) / (after[0] - before[0]) : 0;
  ["left", "top", "width", "height"].forEach((side, number) => {
    box.style[side] = `${before[number + 1] + share * (after[number + 1] - before[number + 1])}%`;
  });
};
const follow = (video) => {
  video.requestVideoFrameCallback?.((_, { mediaTime }) => {
    drawBox(video, mediaTime);
    if (video.isConnected) follow(video);
  });
};
const onVideo = (name, act) => {
  const listen = (event) => event.target instanceof HTMLVideoElement && act(event.target);
  dialog.addEventListener(name, listen, true); // these events do not rise
};
onVideo("loadedmetadata", (video) => {
  video.currentTime = Math.min(Number(video.dataset.at), video.duration);
  follow(video); // frame by frame; a browser that cannot say them goes by the events
});
for (const name of ["seeked", "timeupdate"]) onVideo(name, (video) => drawBox(video));
onVideo("error", (video) => {
  const figure = video.parentElement;
  const frame = Object.assign(new Image(), { src: video.poster, alt: "The whole frame" });
  figure.replaceChildren(...(video.poster ? [frame] : []));
  dialog.querySelector("[data-no-clip]").hidden = false;
});

dialog.addEventListener("change", (event) => {
  const layer = dialog.querySelector(".tpas-layer");
  if (!layer) return; // the image itself is gone
  const heat = dialog.querySelector("[data-heat-switch]");
  if (event.target !== heat) {
    heat.checked = true;
    layer.src = event.target.dataset.heat;
    dialog.querySelector("[data-shown]").textContent = event.target.dataset.name;
  }
  for (const part of dialog.querySelectorAll("[data-of-heat]")) part.hidden = !heat.checked;
});

dialog.addEventListener("click", (event) => {
  const leaves = event.target === dialog || event.target.closest("[data-close], a[data-ask]");
  if (leaves) dialog.close();
});

dialog.addEventListener("close", () => {
  const cards = [...document.querySelectorAll(".tpas-card")]; // others by now where they were re-ranked
  if (asked) cards.find((card) => same(card.dataset, asked))?.focus();
});
