// Runs when the results are on the page; `element` and `trigger` are Gradio's.
element.addEventListener("click", (event) => {
  const card = event.target.closest("[data-place]");
  if (card) {
    const { answer, place } = card.dataset;
    document.dispatchEvent(new CustomEvent("tpas-asked", { detail: { card, answer, place } }));
    trigger("picture", { answer: Number(answer), place: Number(place) });
  }
  const example = event.target.closest("[data-example]");
  if (example) {
    trigger("example", { text: example.textContent });
  }
});
