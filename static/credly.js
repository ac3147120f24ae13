// Comfort only: every page works without this file.
(function () {
  "use strict";

  const inside = (element) => element.closest("[data-credly]");

  // Times in the reader's zone. UTC stays as the tooltip.
  function showTimes(root) {
    const format = new Intl.DateTimeFormat(document.documentElement.lang || undefined, {
      dateStyle: "medium",
      timeStyle: "short",
    });

    for (const time of root.querySelectorAll("[data-credly] time:not([title])")) {
      time.title = time.textContent;
      time.textContent = format.format(new Date(time.dateTime));
    }
  }

  // "Show" beside the Client Secret.
  function addShow(root) {
    for (const input of root.querySelectorAll("[data-credly] input[type=password]:not([data-ready])")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "credly-button credly-show";
      button.textContent = "Show";
      button.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-controls", input.id);
      button.addEventListener("click", () => {
        const shown = input.type === "password";
        input.type = shown ? "text" : "password";
        button.setAttribute("aria-pressed", String(shown));
      });
      input.dataset.ready = "";
      input.after(button);
    }
  }

  function prepare(root) {
    showTimes(root);
    addShow(root);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a");

    if (!link || !inside(link) || event.ctrlKey || event.metaKey || event.shiftKey) {
      return;
    }

    const dialog = document.getElementById(link.dataset.credlyDialog);

    if (dialog) {
      event.preventDefault();
      dialog.showModal();
    } else if ("credlyClose" in link.dataset && link.closest("dialog")) {
      event.preventDefault();
      link.closest("dialog").close();
    } else if ("credlyCancel" in link.dataset && window.htmx) {
      event.preventDefault();
      link.closest("li").remove();
      document.getElementById("credly-add").focus();
    }
  });

  // htmx 2 does not show a form with errors, or a refusal, by itself.
  document.addEventListener("htmx:beforeSwap", (event) => {
    if ([403, 422].includes(event.detail.xhr?.status) && inside(event.detail.elt)) {
      event.detail.shouldSwap = true;
      event.detail.isError = false;
    }
  });

  document.addEventListener("DOMContentLoaded", () => {
    prepare(document);

    for (const root of document.querySelectorAll("[data-credly]")) {
      new MutationObserver(() => prepare(document)).observe(root, {
        childList: true,
        subtree: true,
      });
    }
  });
})();
