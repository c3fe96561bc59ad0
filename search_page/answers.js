// Runs when the results' place is on the page; `element`, `trigger` and `watch` are Gradio's.

// An image by what the server calls it: one of the gallery by its id, an uploaded one by its number.
const imageOf = ({ own, image }) => (own === undefined ? image : Number(own));
const scrollTo = (part) => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  part.scrollIntoView({ block: "start", behavior: calm ? "instant" : "smooth" });
};
// What an address asks. A link asks under the filters of the form, the page's own address under those in it.
const asked = (address, whole) => ({ ...Object.fromEntries(new URLSearchParams(address)), whole });

element.addEventListener("click", (event) => {
  const card = event.target.closest(".tpas-card");
  if (card) {
    document.dispatchEvent(new CustomEvent("tpas-asked", { detail: card }));
    trigger("image", { answer: Number(card.dataset.answer), image: imageOf(card.dataset) });
  }
  const page = event.target.closest("[data-page]");
  if (page) {
    turned = true;
    trigger("turn", { page: Number(page.dataset.page) });
  }
  if (event.target.closest("[data-sheet]")) trigger("sheet", {});
  if (event.target.closest("[data-back]")) history.back();
  const jump = event.target.closest("[data-jump]"); // a link would leave the page: its base is another address
  if (jump) scrollTo(document.getElementById(jump.dataset.jump));
});

// Wherever they stand: links that ask, which others than a plain click open as any link, and downloads.
document.addEventListener("click", (event) => {
  const download = event.target.closest("[data-download]");
  if (download) trigger("download", { image: imageOf(download.dataset) });
  const link = event.target.closest("[data-ask]");
  if (!link || (link.href && (event.ctrlKey || event.metaKey || event.shiftKey))) return;
  event.preventDefault();
  pressed = link.dataset.mark;
  trigger("ask", asked(link.search ?? link.dataset.ask, false));
});

// The address follows the answers, and the answers the address.
let address = location.search;
let turned = false; // to another page of the answers
let pressed; // "liked" or "disliked" and the image: the focus stays there, or goes to where it is taken back
addEventListener("popstate", () => {
  if (location.search === address) return;
  address = location.search;
  trigger("ask", asked(address, true));
});
if (address) trigger("ask", asked(address, true));

watch("value", () => {
  const shown = element.querySelector("[data-address]")?.dataset.address;
  if (shown !== undefined && shown !== address) {
    address = shown;
    history.pushState(null, "", location.pathname + address);
  }
  // On a phone the results lie below the form: what was asked for must not arrive out of sight.
  if (turned || element.getBoundingClientRect().top > window.innerHeight / 2) scrollTo(element);
  turned = false;
  if (pressed) (element.querySelector(`[data-mark="${CSS.escape(pressed)}"]`) ?? element.querySelector(".tpas-taken"))?.focus({ preventScroll: true });
});
