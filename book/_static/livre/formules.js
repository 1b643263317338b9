// Les formules, quelques-unes à la fois : écrites d'un trait, celles d'une longue page la figeraient une seconde. D'abord
// celles que le lecteur a sous les yeux. Ce script passe avant MathJax, qui lit ici ce qu'il fera une fois la page prête.
"use strict";

{
  const BUDGET = 25; // millisecondes de travail, entre deux occasions de répondre au lecteur
  const FONTS = ["MJXZERO", "MJXTEX", "MJXTEX-I"];
  const PATIENCE = 1000; // millisecondes : sans les polices, les formules s'écrivent quand même
  const FORMULAS = ".math, .output_area, .tex2jax_process, .mathjax_process"; // ce que MathJax lit (mathjax3_config)

  // Les polices d'abord : celles d'attente, d'une autre hauteur, écarteraient les lignes un instant.
  const fontsReady = () => {
    document.head.append(MathJax.chtmlStylesheet());
    const loaded = FONTS.map((name) => document.fonts.load(`1em ${name}`));
    return Promise.race([Promise.allSettled(loaded), new Promise((done) => setTimeout(done, PATIENCE))]);
  };

  const pageReady = async () => {
    await fontsReady();
    const all = [...document.querySelectorAll(FORMULAS)];
    const first = Math.max(
      all.findIndex((element) => element.getBoundingClientRect().bottom > 0),
      0,
    );
    const rest = [...all.slice(first), ...all.slice(0, first)];
    for (let count = 4; rest.length > 0; ) {
      const start = performance.now();
      await MathJax.typesetPromise(rest.splice(0, count));
      count = Math.max(1, Math.min(2 * count, Math.round((count * BUDGET) / (performance.now() - start))));
      await new Promise((done) => setTimeout(done));
    }
  };

  window.MathJax = { ...window.MathJax, startup: { pageReady } };
}
