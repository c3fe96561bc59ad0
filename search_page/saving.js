// Saves each file that arrives as a data: address; `props` and `watch` are Gradio's.
watch("value", () => {
  const link = document.createElement("a");
  link.href = props.value;
  link.download = "tpas-results.png";
  link.click();
});
