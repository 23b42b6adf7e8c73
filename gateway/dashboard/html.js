// The vendored libraries under one name, so that no other file knows where they lie.
// `html` is a tagged template: what is interpolated becomes a text node or a property, never markup.

import { h } from "./vendor/preact@11.2.0/preact.mjs";
import htm from "./vendor/htm@3.1.1/htm.mjs";

export { render, Fragment } from "./vendor/preact@11.2.0/preact.mjs";
export { useEffect, useLayoutEffect, useMemo, useReducer, useRef, useState } from "./vendor/preact@11.2.0/hooks.mjs";

export const html = htm.bind(h);

// uPlot comes as a classic script: its module build is three times the size.
export const uPlot = globalThis.uPlot;
