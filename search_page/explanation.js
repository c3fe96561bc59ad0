// Shows each explanation in a dialog; `element`, `props`, `trigger` and `watch` are Gradio's.
document.getElementById("tpas-dialog")?.remove();
const dialog = document.createElement("dialog");
dialog.id = "tpas-dialog";
dialog.setAttribute("aria-label", "Why this image was found");
(element.closest(".gradio-container") ?? document.body).append(dialog);

let asked = null; // the card whose explanation is awaited or shown

document.addEventListener("tpas-asked", (event) => {
  asked = event.detail;
  dialog.innerHTML =
    '<div class="tpas-why tpas-waiting" role="status"><span class="tpas-spinner"></span>Hiding each word in turn…' +
    '<button type="button" class="tpas-close" data-close aria-label="Close">×</button></div>';
  if (!dialog.open) dialog.showModal();
});

watch("value", () => {
  const content = document.createElement("template");
  content.innerHTML = props.value;
  const answer = content.content.querySelector("[data-request]");
  const late = answer?.dataset.place !== undefined &&
    (answer.dataset.answer !== asked?.answer || answer.dataset.place !== asked?.place);
  if (!dialog.open || late) return;
  dialog.replaceChildren(content.content);
  if (!dialog.querySelector("[data-close]")) {
    dialog.insertAdjacentHTML("beforeend", '<button type="button" class="tpas-button" data-close>Close</button>');
  }
  dialog.scrollTop = 0;
  (dialog.querySelector("input:checked") ?? dialog.querySelector("[data-close]")).focus({ preventScroll: true });
});

dialog.addEventListener("change", (event) => {
  if (!dialog.querySelector(".tpas-layer")) return; // the image itself is gone
  dialog.querySelector(".tpas-layer").src = event.target.dataset.heat;
  dialog.querySelector("[data-shown]").textContent = event.target.dataset.name;
});

dialog.addEventListener("click", (event) => {
  const similar = event.target.closest("[data-similar]");
  if (similar) {
    trigger("similar", { answer: Number(similar.dataset.answer), place: Number(similar.dataset.place) });
  }
  if (similar || event.target === dialog || event.target.closest("[data-close]")) dialog.close();
});

dialog.addEventListener("close", () => asked?.card.focus());
