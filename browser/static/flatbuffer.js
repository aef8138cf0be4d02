/**
 * Parses the parts of a TFLite flatbuffer that the page needs, after its digest was verified.
 *
 * Source: `tensorflow/lite/schema/schema.fbs` (field numbers in the comments below).
 */

/**
 * @typedef {object} Tensor
 * @property {string} type e.g. `UINT8`
 * @property {number[]} shape
 * @property {number[]} scale one value, or one per channel; empty if the tensor is not quantized
 * @property {number[]} zeroPoint as many values as `scale`
 * @property {Uint8Array} constant empty for an activation
 */

/**
 * @typedef {object} Operator
 * @property {number} code of the builtin operator
 * @property {number[]} inputs -1 for an omitted one
 * @property {number[]} outputs
 */

/**
 * @typedef {object} Graph
 * @property {Tensor[]} tensors
 * @property {Operator[]} operators
 * @property {number[]} inputs
 * @property {number[]} outputs
 * @property {Map<string, number>} outputNames the tensors of the signature's outputs by name
 */

export const OP = { DEQUANTIZE: 6, FULLY_CONNECTED: 9, RESHAPE: 22, SOFTMAX: 25, SQUEEZE: 43, QUANTIZE: 114 };
/** Operators that may follow the softmax without changing the meaning of the output. */
const PASSING = [OP.DEQUANTIZE, OP.QUANTIZE, OP.RESHAPE, OP.SQUEEZE];
/** @type {Record<number, string>} */
const TYPES = { 0: "FLOAT32", 1: "FLOAT16", 2: "INT32", 3: "UINT8", 9: "INT8" };

class Table {
  /**
   * @param {DataView} view
   * @param {number} at
   */
  constructor(view, at) {
    this.view = view;
    this.at = at;
    this.vtable = at - view.getInt32(at, true);
    this.vtableBytes = view.getUint16(this.vtable, true);
  }

  /** @param {number} number */
  field(number) {
    const slot = 4 + 2 * number;
    const offset = slot + 2 > this.vtableBytes ? 0 : this.view.getUint16(this.vtable + slot, true);
    return offset ? this.at + offset : 0;
  }

  /** @param {number} number */
  u8(number) {
    const at = this.field(number);
    return at ? this.view.getUint8(at) : 0;
  }

  /** @param {number} number */
  i32(number) {
    const at = this.field(number);
    return at ? this.view.getInt32(at, true) : 0;
  }

  /** @param {number} number */
  table(number) {
    const at = this.field(number);
    return at ? new Table(this.view, at + this.view.getUint32(at, true)) : null;
  }

  /**
   * @template T
   * @param {number} number
   * @param {number} itemBytes
   * @param {(at: number) => T} read
   * @returns {T[]}
   */
  vector(number, itemBytes, read) {
    const field = this.field(number);
    if (!field) return [];
    const at = field + this.view.getUint32(field, true);
    const length = this.view.getUint32(at, true);
    if (at + 4 + length * itemBytes > this.view.byteLength) throw new RangeError("outside the file");
    return Array.from({ length }, (_, index) => read(at + 4 + index * itemBytes));
  }

  /** @param {number} number */
  i32s(number) {
    return this.vector(number, 4, (at) => this.view.getInt32(at, true));
  }

  /** @param {number} number */
  tables(number) {
    return this.vector(number, 4, (at) => new Table(this.view, at + this.view.getUint32(at, true)));
  }

  /** @param {number} number */
  raw(number) {
    const field = this.field(number);
    if (!field) return new Uint8Array();
    const at = field + this.view.getUint32(field, true);
    return new Uint8Array(this.view.buffer, this.view.byteOffset + at + 4, this.view.getUint32(at, true));
  }

  /** @param {number} number */
  text(number) {
    return new TextDecoder().decode(this.raw(number));
  }
}

/**
 * The first subgraph.
 * @param {Uint8Array} data
 * @returns {Graph}
 * @throws {RangeError} an offset leads outside the file
 */
export function readGraph(data) {
  // Model: operator_codes 1, subgraphs 2, buffers 4, signature_defs 7
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const model = new Table(view, view.getUint32(0, true));
  // OperatorCode: deprecated_builtin_code 0, builtin_code 3; codes below 127 may be in either
  const codes = model.tables(1).map((code) => Math.max(code.u8(0), code.i32(3)));
  const buffers = model.tables(4).map((buffer) => buffer.raw(0));
  const main = model.tables(2)[0]; // SubGraph: tensors 0, inputs 1, outputs 2, operators 3
  // SignatureDef: outputs 1, subgraph_index 4; TensorMap: name 0, tensor_index 1
  const signature = model.tables(7).find((each) => each.i32(4) === 0);
  const names = (signature?.tables(1) ?? []).map((each) => /** @type {const} */ ([each.text(0), each.i32(1)]));
  return {
    tensors: main.tables(0).map((table) => readTensor(table, buffers)),
    // Operator: opcode_index 0, inputs 1, outputs 2
    operators: main.tables(3).map((each) => ({ code: codes[each.i32(0)], inputs: each.i32s(1), outputs: each.i32s(2) })),
    inputs: main.i32s(1),
    outputs: main.i32s(2),
    outputNames: new Map(names),
  };
}

/**
 * @param {Table} table
 * @param {Uint8Array[]} buffers
 * @returns {Tensor}
 */
function readTensor(table, buffers) {
  // Tensor: shape 0, type 1, buffer 2, quantization 4 (QuantizationParameters: scale 2, zero_point 3)
  const quantization = table.table(4);
  return {
    type: TYPES[table.u8(1)] ?? `TYPE ${table.u8(1)}`,
    shape: table.i32s(0),
    scale: quantization?.vector(2, 4, (at) => table.view.getFloat32(at, true)) ?? [],
    zeroPoint: quantization?.vector(3, 8, (at) => Number(table.view.getBigInt64(at, true))) ?? [],
    constant: buffers[table.i32(2)],
  };
}

/**
 * The operator that writes a tensor.
 * @param {Graph} graph
 * @param {number} tensor
 */
export function producer(graph, tensor) {
  return graph.operators.find((operator) => operator.outputs.includes(tensor));
}

/**
 * Index of the tensor with the probabilities: the first output from a softmax.
 * @param {Graph} graph
 * @returns {number | undefined}
 */
export function probabilitiesIndex(graph) {
  return graph.outputs.length > 2 ? undefined : graph.outputs.find((output) => lastOperator(graph, output) === OP.SOFTMAX);
}

/**
 * @param {Graph} graph
 * @param {number} output
 */
function lastOperator(graph, output) {
  let operator = producer(graph, output);
  while (operator && PASSING.includes(operator.code) && operator.inputs.length)
    operator = producer(graph, operator.inputs[0]);
  return operator?.code;
}
