"use strict";
// Texts in the language of the page: the English one is the key, {names} stand for values.
const translations = JSON.parse((document.querySelector("meta[name=texts]") || { content: "{}" }).content);

function _(text, values = {}) {
  return (translations[text] || text).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

// A number with the decimal sign of the page's language.
function decimal(value, digits) {
  return value.toLocaleString(document.documentElement.lang, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
