/* cache_doc.h: the docstrings of cache.c, apart so that its code stays in one view. */
#ifndef OCT_PY_CACHE_DOC_H
#define OCT_PY_CACHE_DOC_H

PyDoc_STRVAR(cache_doc,
"Cache(runtime, layers, *, budget, sink_pages=0, recent_pages=0, prefix=True,\n"
"      saturate=False)\n--\n\n"
"Keys and values of sequences in pages, within a budget of bytes.\n\n"
"layers are mappings {latent, kv_heads, k_width, v_width, k_format, v_format, k_transform,\n"
"v_transform, form} (octavo.h, oct_layer_desc). Sequences are plain ints (slot and generation). While one call works on a cache, another\n"
"thread's call on it raises BusyError.");
PyDoc_STRVAR(open_doc,
"open($self)\n--\n\n"
"A new, empty sequence.");
PyDoc_STRVAR(release_doc,
"release($self, seq, force=False)\n--\n\n"
"Give the sequence and its pages back. BufferError while views hold one of its pages, unless\n"
"force: those stay alive until their last view is gone.");
PyDoc_STRVAR(length_doc,
"length($self, seq)\n--\n\n"
"Tokens of the sequence.");
PyDoc_STRVAR(fork_doc,
"fork($self, seq)\n--\n\n"
"A new sequence of the same history: sealed pages shared, open rows copied.");
PyDoc_STRVAR(reencode_doc,
"reencode($self, seq, into)\n--\n\n"
"The same history encoded anew in another cache of the same shapes; its sequence there.");
PyDoc_STRVAR(truncate_doc,
"truncate($self, seq, n)\n--\n\n"
"Forget tokens at and past n. Returns how many were kept (<= n): the rest must be fed again.");
PyDoc_STRVAR(match_doc,
"match($self, seq, tokens, salt=0)\n--\n\n"
"Attach the longest indexed prefix of tokens (int32) to an empty sequence; its length.");
PyDoc_STRVAR(needs_doc,
"needs($self, seqs, counts)\n--\n\n"
"(bytes needed, bytes available with eviction) for counts[i] more tokens on seqs[i].");
PyDoc_STRVAR(bytes_for_doc,
"bytes_for($self, tokens)\n--\n\n"
"Bytes that a sequence of so many tokens needs in an empty cache.");
PyDoc_STRVAR(ledger_doc,
"ledger($self, seq=None)\n--\n\n"
"Bytes and counts of the cache, or of one sequence, by name.");
PyDoc_STRVAR(check_doc,
"check($self)\n--\n\n"
"Raises AssertionError naming the invariant that does not hold.");
PyDoc_STRVAR(drop_prefix_doc,
"drop_prefix($self)\n--\n\n"
"Evict every indexed page that no sequence uses.");
PyDoc_STRVAR(append_doc,
"append($self, seq, k, v, n, q=None, heads=0, scale=1.0, window=0, sinks=None)\n--\n\n"
"Append n tokens' rows to every layer; with q, also attend causally and return the output.\n\n"
"Flat float32 arrays in the order of octavo.h's oct_rows_desc: k [layers][n][kv_heads][k_width],\n"
"v alike, q [layers][n][heads][k_width], output [layers][n][heads][v_width]. q is multiplied by\n"
"scale. In a latent layer q is k_width + v_width wide, output k_width. window, if not 0: a query\n"
"sees itself and the window - 1 tokens before it. sinks: float32 [heads], one more logit of each\n"
"head in the softmax, of a token without a value.");
PyDoc_STRVAR(attend_doc,
"attend($self, seq, layer, q, heads, scale, window=0, sinks=None)\n--\n\n"
"Attention of q [m, heads, k_width], standing just after the last token: [m, heads, v_width];\n"
"widths, window and sinks as in append.");
PyDoc_STRVAR(decode_doc,
"decode($self, seq, layer, index, segment, model_basis=False)\n--\n\n"
"A float32 copy of one page's segment ('k' or 'v'; of a latent layer 'latent' or 'rope'),\n"
"[kv_heads, tokens, width], as attention reads it; model_basis undoes the transform.");
PyDoc_STRVAR(page_doc,
"page($self, seq, layer, index, segment)\n--\n\n"
"The Page at block index of a sequence's table; segments as in decode.");
PyDoc_STRVAR(edit_doc,
"edit($self, seq, layer, index, segment)\n--\n\n"
"A writable Page, copied first if it was shared. Until its close(), calls that change, attend to or\n"
"copy the sequence raise BusyError; other sequences go on.");
PyDoc_STRVAR(close_doc,
"close($self)\n--\n\n"
"Free the pages. BufferError while views hold one, BusyError while a call is inside; then nothing\n"
"happens. Closing again does nothing.");

#endif
