/* weights_doc.h: the docstrings of weights.c, apart so that its code stays in one view. */
#ifndef OCT_PY_WEIGHTS_DOC_H
#define OCT_PY_WEIGHTS_DOC_H

PyDoc_STRVAR(weights_doc,
"Weights(runtime)\n--\n\n"
"Packed matrices and vectors of one model, by id.");
PyDoc_STRVAR(matrix_doc,
"matrix($self, format, n, k, codes, *, source='bytes', values_type=None, row_stride,\n"
"       group_stride=0, scales=None, mins=None, scale_type=None, scale_offset=0, min_offset=0,\n"
"       code_offset=0, scale_row_stride=0, scale_group_stride=0, zeros=None,\n"
"       zero_row_stride=0, row_map=None)\n--\n\n"
"Pack a matrix and return its id.\n\n"
"codes, scales, mins and zeros are objects with the buffer protocol, read as bytes and held for\n"
"the call; offsets are bytes from each buffer's start, strides bytes (kernels.h's oct_source).\n"
"Every address that packing will touch is checked against its buffer first (ValueError).\n"
"Interleaved blocks (GGUF) pass the same buffer three times with different offsets.");
PyDoc_STRVAR(matrices_doc,
"matrices($self, sources)\n--\n\n"
"Pack many matrices in one parallel pass, all or none, and return their ids.\n\n"
"Each of sources is a dict of the arguments of matrix(), all by name.");
PyDoc_STRVAR(vector_doc,
"vector($self, values)\n--\n\nCopy a float32 vector (a norm, a bias) and return its id.");
PyDoc_STRVAR(info_doc,
"info($self, id)\n--\n\n"
"What matrix id is: format, scale_type, n, k, group (inputs that share a scale; 0: none),\n"
"has_zero, has_min, nbytes.");
PyDoc_STRVAR(unpack_doc,
"unpack($self, id)\n--\n\n"
"Logical arrays by name, as copies: codes [n, k] (uint8; int8 for w8 and w8g32), scales, mins\n"
"(float16, or uint16 bits of bfloat16; w8: float32), zeros; or values [n, k] (float32, float16, uint16 bits).");
PyDoc_STRVAR(rows_doc,
"rows($self, id, ids)\n--\n\nThe dequantized rows ids (int32 [m]) of a matrix, float32 [m, k].");
PyDoc_STRVAR(linear_doc,
"linear($self, id, x, act='a8x2', out=None)\n--\n\n"
"x W^T, float32 [m, n], of x float32 [m, k] read in activation form act. out must be float32,\n"
"C-contiguous [m, n] and not overlap x; it is returned.");
PyDoc_STRVAR(close_doc,
"close($self)\n--\n\n"
"Let go of the weights; open Programs keep what they use. BusyError while a call is inside.");

#endif
