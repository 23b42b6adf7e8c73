// Sets the page's colours before it is drawn; a classic script, because a module would come too late.
// The choice is "light", "dark" or "auto" (what the system wants), kept in the browser.

(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const key = "tidegate-theme";

  function choice() {
    try {
      const kept = localStorage.getItem(key);
      return kept === "light" || kept === "dark" ? kept : "auto";
    } catch {
      // A browser may forbid storage; the page then follows the system.
      return "auto";
    }
  }

  function apply(chosen) {
    const dark = chosen === "dark" || (chosen === "auto" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    document.dispatchEvent(new Event("themechange"));
  }

  let chosen = choice();
  apply(chosen);
  system.addEventListener("change", () => apply(chosen));

  globalThis.theme = {
    get choice() {
      return chosen;
    },
    choose(next) {
      chosen = next;
      try {
        localStorage.setItem(key, next);
      } catch {
        // Then it holds until the page is left.
      }
      apply(next);
    },
  };
})();
