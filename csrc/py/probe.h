/* probe.h: what the files of octavo._probe share. */
#ifndef OCT_PROBE_H
#define OCT_PROBE_H

#include "csrc/py/numpy_api.h"
#include "kernels/kernels.h"

/* A name (scalar, avx2, avx512, amx) to an oct_isa; 0 with an exception set if unknown. Usable as
 * an O& converter. */
int oct_probe_isa(PyObject *name, void *isa);
/* The table capped at `isa`. Static storage. */
const oct_kernels *oct_probe_table(oct_isa isa);
/* Each of the files calls no import_array of its own: they share one NumPy table. */
void oct_probe_import_numpy(void);

extern PyMethodDef oct_probe_weight_methods[], oct_probe_page_methods[], oct_probe_op_methods[],
    oct_probe_route_methods[];

#endif
