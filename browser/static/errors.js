/** The error that a user can resolve: what went wrong and where, and what to do. */
export class EdgeallError extends Error {
  /**
   * @param {string} message names the file
   * @param {string} [hint] an imperative
   */
  constructor(message, hint = "") {
    super(message);
    this.hint = hint;
  }
}

/** A model file that is damaged, not supported or inconsistent. */
export class BundleError extends EdgeallError {}

/** An image that cannot be used. Loops over images report it and continue. */
export class ImageError extends EdgeallError {}
