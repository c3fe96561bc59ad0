// Saves each file that arrives as a link to its content; `props` and `watch` are Gradio's.
watch("value", () => {
  const content = document.createElement("template");
  content.innerHTML = props.value;
  content.content.querySelector("a")?.click();
});
