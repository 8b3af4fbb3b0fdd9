// torch's normal noise of a CPU generator, as validation/backends/lean/noise.py draws it: the same seed gives the same picture.

/** The first words of a Mersenne twister. */
function* twister(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let i = 1; i < 624; i += 1) state[i] = Math.imul(state[i - 1] ^ (state[i - 1] >>> 30), 1812433253) + i;
  for (;;) {
    for (let i = 0; i < 624; i += 1) {
      const joined = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (joined >>> 1) ^ (joined & 1 ? 0x9908b0df : 0);
    }
    for (let word of state) {
      word ^= word >>> 11;
      word ^= (word << 7) & 0x9d2c5680;
      word ^= (word << 15) & 0xefc60000;
      yield (word ^ (word >>> 18)) >>> 0;
    }
  }
}

/** Unit-variance noise. @param size values, 16 at least: torch draws fewer in another way */
export function noise(seed, size) {
  const [words, found, round] = [twister(seed), new Float32Array(size), Math.fround];
  const uniform = Float32Array.from({ length: size }, () => (words.next().value & 0xffffff) / 2 ** 24);
  const block = (values, at) => {
    for (let i = 0; i < 8; i += 1) {
      const radius = round(Math.sqrt(round(-2 * round(Math.log(round(1 - values[i]))))));
      const angle = round(round(2 * Math.PI) * values[i + 8]);
      found[at + i] = radius * round(Math.cos(angle));
      found[at + i + 8] = radius * round(Math.sin(angle));
    }
  };
  for (let at = 0; at + 16 <= size; at += 16) block(uniform.subarray(at, at + 16), at);
  // What is left over fills no block: the last sixteen are drawn anew.
  if (size % 16) block(Float32Array.from({ length: 16 }, () => (words.next().value & 0xffffff) / 2 ** 24), size - 16);
  return found;
}
