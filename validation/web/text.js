// CLIP's tokenizer: byte pairs of lower-case words, with the ids that validation/backends/lean/tokenizer.py gives.

// Spelt out: JavaScript's \s is another set than Unicode's white space.
const WORDS = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;
// Byte-level splitting is done once more within each word.
const PARTS = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}+|[^\p{White_Space}\p{L}\p{N}]+/gu;
const END = "</w>";

/** Byte → the printable character that stands for it (GPT-2's table). */
function byteCharacters() {
  const found = [];
  let next = 256;
  for (let byte = 0; byte < 256; byte += 1) {
    const plain = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    found.push(String.fromCodePoint(plain ? byte : next++));
  }
  return found;
}
const CHARACTERS = byteCharacters();

/** Parts of a text; every second one is a token of the list. */
function around(text, tokens) {
  if (!tokens.length) return [text];
  const escaped = tokens.map((token) => token.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
  return text.split(new RegExp(`(${escaped.join("|")})`, "u"));
}

// One character at a time, since JavaScript writes a sigma at the end of a word in another way.
const plain = (text) => Array.from(text.normalize("NFC"), (character) => character.toLowerCase()).join("");

export class Tokenizer {
  /** @param made what the page's settings say of it */
  constructor({ vocab, merges, special, start, end, pad, length }) {
    Object.assign(this, { special, start, end, pad, length });
    this.vocab = new Map(Object.entries(vocab));
    this.ranks = new Map(merges.map((pair, rank) => [pair, rank]));
  }

  /** Ids of a text, start and end included, as many as there are. */
  ids(text) {
    const found = [this.start];
    const named = (normalized) => this.special.filter((token) => token.normalized === normalized).map((token) => token.content);
    const add = (part, at, then) => (at % 2 ? found.push(this.vocab.get(part)) : then(part));
    around(text, named(false)).forEach((part, at) => add(part, at, (rest) => {
      around(plain(rest), named(true)).forEach((inner, place) => add(inner, place, (words) => {
        for (const word of words.match(WORDS) ?? []) for (const one of word.match(PARTS)) found.push(...this.pairs(one));
      }));
    }));
    return [...found, this.end];
  }

  /** Ids of a word: the pair of the lowest rank, the first of its kind, is joined until none is known. */
  pairs(word) {
    const parts = Array.from(new TextEncoder().encode(word), (byte) => CHARACTERS[byte]);
    parts[parts.length - 1] += END;
    for (;;) {
      let [best, at] = [Infinity, 0];
      for (let i = 0; i + 1 < parts.length; i += 1) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (best === Infinity) return parts.map((part) => this.vocab.get(part));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  /** Ids cut and padded to the length of a row. */
  row(text) {
    const ids = this.ids(text);
    const kept = ids.length > this.length ? [...ids.slice(0, this.length - 1), this.end] : ids;
    return [...kept, ...Array(this.length - kept.length).fill(this.pad)];
  }

  /** How many of a text's tokens the text encoder doesn't see. */
  truncated(text) {
    return Math.max(0, this.ids(text).length - this.length);
  }
}
