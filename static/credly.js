// Comfort only: every page works without this file.
(function () {
  "use strict";

  // A host whose links are boosted brings this file once more with each page.
  if (window.credlyIsHere) {
    return;
  }

  window.credlyIsHere = true;

  // All words stand in the templates, where they are translated.
  const flash = () => document.getElementById("credly-flash");
  const words = () => flash().dataset;

  const inside = (element) => element.closest?.("[data-credly]");

  // Times in the reader's zone. UTC stays as the tooltip.
  function showTimes(root) {
    const format = new Intl.DateTimeFormat(document.documentElement.lang || undefined, {
      dateStyle: "medium",
      timeStyle: "short",
      // As the server writes them.
      numberingSystem: "latn",
    });

    for (const time of root.querySelectorAll("[data-credly] time:not([title])")) {
      time.title = time.textContent;
      time.textContent = format.format(new Date(time.dateTime));
    }
  }

  // "Show" beside the Client Secret.
  function addShow(root) {
    for (const input of root.querySelectorAll("[data-credly] input[autocomplete=new-password]")) {
      // No mark on the field: while htmx puts a form in, it lends it what the old had.
      if (input.nextElementSibling) {
        continue;
      }

      const button = document.createElement("button");
      button.type = "button";
      button.className = "credly-button credly-show";
      button.textContent = words().show;
      button.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-controls", input.id);
      button.addEventListener("click", () => {
        const shown = input.type === "password";
        input.type = shown ? "text" : "password";
        button.setAttribute("aria-pressed", String(shown));
      });
      input.after(button);
    }
  }

  // "Copy" beside the Organization ID. A page without https has no clipboard.
  function addCopy(root) {
    if (!navigator.clipboard) {
      return;
    }

    for (const value of root.querySelectorAll("[data-credly] [data-credly-copy]")) {
      if (value.querySelector("button")) {
        continue;
      }

      const button = document.createElement("button");
      const text = value.textContent.trim();
      button.type = "button";
      button.className = "credly-button credly-copy";
      button.textContent = words().copy;
      button.setAttribute("aria-label", value.dataset.credlyCopy);
      button.addEventListener("click", () => {
        navigator.clipboard.writeText(text).then(
          () => tell("copied"),
          () => tell("uncopied"),
        );
      });
      value.append(" ", button);
    }
  }

  function prepare(root) {
    showTimes(root);
    addShow(root);
    addCopy(root);
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

  // What comes back from htmx: the names of version 2, then those of 4.
  const LOGIN = 401;
  const DENIED = 403;
  const SHOWN = [DENIED, 422, 429];
  const OURS = "credly-refusal";

  // What a limit of requests or a firewall answers is a page of its own.
  const isError = (status, ours) =>
    status >= 400 && status !== LOGIN && !(ours && SHOWN.includes(status));

  function tell(word) {
    const said = document.createElement("p");
    said.textContent = words()[word];
    flash().replaceChildren(said);
    flash().scrollIntoView({ block: "nearest" });
    return said;
  }

  function say(event, word) {
    if (inside(event.target)) {
      const said = tell(word);
      said.className = "credly-trouble";
      said.setAttribute("role", "alert");
      said.dataset.word = words().error;
    }
  }

  // Trouble is over with the next good answer. A refusal that polling repeats is said
  // once.
  function isSaid(status, text) {
    const trouble = flash().querySelector(".credly-trouble");

    if (trouble && status !== DENIED) {
      trouble.remove();
    }

    return trouble && status === DENIED && text.includes(trouble.textContent);
  }

  // 2 does not show a form with errors, or a refusal, by itself.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { elt, xhr } = event.detail;

    if (!xhr || !inside(elt) || isError(xhr.status, xhr.getResponseHeader(OURS))) {
      return;
    }

    if (SHOWN.includes(xhr.status)) {
      event.detail.shouldSwap = true;
      event.detail.isError = false;
    }

    if (isSaid(xhr.status, xhr.responseText)) {
      event.detail.shouldSwap = false;
    }
  });

  document.addEventListener("htmx:responseError", (event) => say(event, "wrong"));
  document.addEventListener("htmx:sendError", (event) => say(event, "silent"));

  // 4 shows whatever comes, the error page of a server included.
  document.addEventListener("htmx:before:swap", (event) => {
    const { response, text } = event.detail.ctx ?? {};

    if (!response || !inside(event.target)) {
      return;
    }

    if (isError(response.status, response.headers.get(OURS))) {
      event.preventDefault();
      say(event, "wrong");
    } else if (isSaid(response.status, text)) {
      event.preventDefault();
    }
  });

  document.addEventListener("htmx:error", (event) => {
    if (event.detail.ctx && !event.detail.ctx.response) {
      say(event, "silent");
    }
  });

  function begin() {
    prepare(document);

    // What a host has disabled during its requests, where 4 inherits as 2 does. In 2
    // the attribute would switch off htmx itself.
    if (window.htmx?.version?.startsWith("4")) {
      document.querySelector("[data-credly]")?.setAttribute("hx-disable", "");
    }

    // A message that is there from the start is not read out by itself. Not by
    // "autofocus": htmx would find that again after every swap.
    const message = document.querySelector("[data-credly] #credly-flash");

    if (message?.textContent.trim() && document.activeElement === document.body) {
      message.focus();
    }

    // The whole of it: a boosted link puts a page of ours into one of the host's.
    new MutationObserver(() => prepare(document)).observe(document, {
      childList: true,
      subtree: true,
    });
  }

  if (document.readyState === "loading") {
    document.addEventListener("DOMContentLoaded", begin);
  } else {
    begin();
  }
})();
