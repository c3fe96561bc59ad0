// Runs when the results' place is on the page; `element`, `trigger` and `watch` are Gradio's.
element.addEventListener("click", (event) => {
  const card = event.target.closest("[data-place]");
  if (card) {
    const { answer, place } = card.dataset;
    document.dispatchEvent(new CustomEvent("tpas-asked", { detail: { card, answer, place } }));
    trigger("image", { answer: Number(answer), place: Number(place) });
  }
  if (event.target.closest("[data-sheet]")) trigger("sheet", {});
  const example = event.target.closest("[data-example]");
  if (example) {
    trigger("example", { text: example.textContent });
  }
});

// On a phone the results lie below the form: what was asked for must not arrive out of sight.
watch("value", () => {
  if (element.getBoundingClientRect().top > window.innerHeight / 2) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    element.scrollIntoView({ block: "start", behavior: calm ? "instant" : "smooth" });
  }
});
