// Saves each file that arrives as a link to its content; `props` and `watch` are Gradio's.
watch("value", () => {
  const content = document.createElement("template");
  content.innerHTML = props.value;
  const link = content.content.querySelector("a");
  if (link) document.importNode(link).click(); // of a template itself a click does nothing
});
