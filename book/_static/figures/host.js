// Les figures interactives sans noyau : monte, dans la page construite, les anywidgets dont myst-nb a écrit l'état.
//
// Un script classique (`defer`), pour que la page marche aussi depuis file://. Il tient le contrat d'un modèle
// anywidget (get, set, on, off, save_changes, send) et les liens de `jslink` ; rien d'autre d'ipywidgets.
(() => {
  "use strict";

  const STATE = "application/vnd.jupyter.widget-state+json";
  const VIEW = "application/vnd.jupyter.widget-view+json";
  const HOW = "Ouvrez le carnet dans JupyterLab (make lab).";

  /** Une figure qui ne peut pas être montrée, et pourquoi : sa phrase prend la place de la boîte vide. */
  class Absent extends Error {}

  class Model {
    #state;
    #listeners = new Map();

    constructor(record) {
      this.#state = { ...record.state };
      for (const { path, encoding, data } of record.buffers ?? []) {
        if (encoding !== "base64" || path.length !== 1)
          throw new Absent("Les données de cette figure sont illisibles.");
        this.#state[path[0]] = new DataView(Uint8Array.from(atob(data), (char) => char.charCodeAt(0)).buffer);
      }
    }

    get(name) {
      return this.#state[name];
    }

    set(name, value) {
      const changes = typeof name === "string" ? { [name]: value } : name;
      const changed = Object.keys(changes).filter((key) => this.#state[key] !== changes[key]);
      for (const key of changed) this.#state[key] = changes[key];
      for (const key of changed) this.#emit(`change:${key}`, this, changes[key]);
      if (changed.length) this.#emit("change", this);
    }

    on(events, callback) {
      for (const event of events.split(/\s+/))
        this.#listeners.set(event, [...(this.#listeners.get(event) ?? []), callback]);
    }

    off(events, callback) {
      if (!events) return this.#listeners.clear();
      for (const event of events.split(/\s+/)) {
        const kept = callback ? (this.#listeners.get(event) ?? []).filter((other) => other !== callback) : [];
        this.#listeners.set(event, kept);
      }
    }

    #emit(event, ...values) {
      for (const callback of this.#listeners.get(event) ?? []) callback(...values);
    }

    save_changes() {} // `set` a déjà prévenu tout le monde : il n'y a pas de noyau

    send() {} // personne n'écoute
  }

  const modules = new Map(); // une fois par source, quel que soit le nombre d'exemplaires
  function load(source) {
    if (!modules.has(source)) {
      const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
      modules.set(
        source,
        import(url).finally(() => URL.revokeObjectURL(url)),
      );
    }
    return modules.get(source);
  }

  const styles = new Set();
  function dress(css) {
    if (!css || styles.has(css)) return;
    styles.add(css);
    document.head.append(Object.assign(document.createElement("style"), { textContent: css }));
  }

  function read() {
    const script = document.querySelector(`script[type="${STATE}"]`);
    if (!script) throw new Absent("L’état de cette figure manque à la page.");
    let content;
    try {
      content = JSON.parse(script.textContent);
    } catch {
      throw new Absent("L’état de cette figure est abîmé.");
    }
    if (content.version_major !== 2)
      throw new Absent(`L’état de cette figure est d’une autre version (${content.version_major}).`);
    return content.state ?? {};
  }

  /** `jslink` et `jsdlink` entre deux figures de la page. */
  function link(record, models) {
    const [source, target] = [record.state.source, record.state.target].map(([reference, trait]) => [
      models.get(reference.replace("IPY_MODEL_", "")),
      trait,
    ]);
    if (!(source[0] instanceof Model && target[0] instanceof Model)) return;
    const follow = ([from, name], [to, other]) => {
      to.set(other, from.get(name));
      from.on(`change:${name}`, () => to.set(other, from.get(name)));
    };
    follow(source, target);
    if (record.model_name === "LinkModel") follow(target, source);
  }

  async function mount(view, models, states) {
    const { model_id: id } = JSON.parse(view.textContent);
    const record = states[id];
    if (!record) throw new Absent("L’état de cette figure manque à la page.");
    if (record.model_module !== "anywidget") throw new Absent("Ce contrôle a besoin de Python.");
    const model = models.get(id);
    if (model instanceof Error) throw model;
    dress(model.get("_css"));
    let widget = (await load(model.get("_esm"))).default;
    if (typeof widget === "function") widget = await widget();
    const el = document.createElement("div");
    view.after(el);
    try {
      await widget.initialize?.({ model });
      await widget.render({ model, el });
    } catch (error) {
      el.remove();
      throw error;
    }
  }

  function refuse(view, error) {
    const reason = error instanceof Absent ? error.message : "Cette figure n’a pas pu être dessinée.";
    if (!(error instanceof Absent)) console.error(error);
    const box = Object.assign(document.createElement("p"), {
      className: "lrq-absent",
      textContent: `${reason} ${HOW}`,
    });
    view.after(box);
  }

  /** Une figure abîmée ne prive pas la page des autres : son erreur attend qu'on la montre. */
  function attempt(task) {
    try {
      return task();
    } catch (error) {
      return error instanceof Absent ? error : new Absent("Les données de cette figure sont illisibles.");
    }
  }

  async function start() {
    const views = Array.from(document.querySelectorAll(`script[type="${VIEW}"]`));
    if (!views.length) return;
    const models = new Map();
    let states;
    try {
      states = read();
      for (const [id, record] of Object.entries(states))
        if (record.model_module === "anywidget")
          models.set(
            id,
            attempt(() => new Model(record)),
          );
      for (const record of Object.values(states))
        if (/^(Directional)?LinkModel$/.test(record.model_name)) attempt(() => link(record, models));
    } catch (error) {
      views.forEach((view) => refuse(view, error));
      return;
    }
    await Promise.all(views.map((view) => mount(view, models, states).catch((error) => refuse(view, error))));
  }

  start(); // `defer` : le document est déjà lu
})();
