// A button beside each value that copies it. Without scripts there is none.
for (const code of document.querySelectorAll("[data-copy] code")) {
  const button = document.createElement("button");
  const term = code.closest("dd").previousElementSibling.textContent;
  button.type = "button";
  button.className = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy ${term}`);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  });
  code.after(" ", button);
}
