// A cuBLASLt that computes on the host, in float32 and rounded once: what the CUDA operators call, with its rules checked.
//
// Written after the documentation of cublasLt.h; every status but 0 is a failure that the operators must report.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 7, NOT_SUPPORTED = 15 };
enum { TYPE_FLOAT16 = 2, TYPE_BFLOAT16 = 14 };
enum { EPILOGUE = 7, BIAS_POINTER = 8, HAS_BIAS = 4, HAS_GELU = 32 };
enum { MAX_WORKSPACE = 1, ALIGNMENT_A = 5, ALIGNMENT_D = 8 };

typedef struct { int compute, scale; uint32_t epilogue; const void *bias; } Product;
typedef struct { int type; uint64_t rows, columns; int64_t stride; } Matrix;
typedef struct { uint64_t max_workspace; uint32_t alignment[4]; } Preference;
typedef struct { uint64_t data[8]; } Algorithm;
typedef struct { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; } Found;

static const size_t WORKSPACE = 4096;
_Atomic int asked = 0;   // how often for an algorithm
_Atomic int live = 0;    // descriptions that nobody has destroyed
int refuses = OK;        // status of what is asked for an algorithm
int fails = OK;          // status of products

static float read_half(const void *from, int type, size_t place) {
  if (type == TYPE_FLOAT16) return (float)((const _Float16 *)from)[place];
  uint32_t bits = (uint32_t)((const uint16_t *)from)[place] << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static void write_half(void *to, int type, size_t place, float value) {
  if (type == TYPE_FLOAT16) { ((_Float16 *)to)[place] = (_Float16)value; return; }
  uint32_t bits;
  memcpy(&bits, &value, 4);
  ((uint16_t *)to)[place] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void *keep(const void *value, size_t size) {
  ++live;
  return memcpy(malloc(size), value, size);
}
static int destroy(void *made) {
  --live;
  free(made);
  return OK;
}

int cublasLtMatmulDescCreate(void **made, int compute, int scale) {
  Product product = {compute, scale, 1, NULL};
  *made = keep(&product, sizeof product);
  return compute == 68 && scale == 0 ? OK : NOT_SUPPORTED;
}
int cublasLtMatmulDescDestroy(void *made) { return destroy(made); }
int cublasLtMatmulDescSetAttribute(Product *product, int attribute, const void *value, size_t size) {
  if (attribute == EPILOGUE && size == 4) memcpy(&product->epilogue, value, size);
  else if (attribute == BIAS_POINTER && size == sizeof(void *)) memcpy(&product->bias, value, size);
  else return INVALID;
  return OK;
}

int cublasLtMatrixLayoutCreate(void **made, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  Matrix matrix = {type, rows, columns, stride};
  *made = keep(&matrix, sizeof matrix);
  return OK;
}
int cublasLtMatrixLayoutDestroy(void *made) { return destroy(made); }

int cublasLtMatmulPreferenceCreate(void **made) {
  Preference preference = {0, {256, 256, 256, 256}};
  *made = keep(&preference, sizeof preference);
  return OK;
}
int cublasLtMatmulPreferenceDestroy(void *made) { return destroy(made); }
int cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *value, size_t size) {
  if (attribute == MAX_WORKSPACE && size == 8) memcpy(&preference->max_workspace, value, size);
  else if (attribute >= ALIGNMENT_A && attribute <= ALIGNMENT_D && size == 4)
    memcpy(&preference->alignment[attribute - ALIGNMENT_A], value, size);
  else return INVALID;
  return OK;
}

static int fits(const Matrix *a, const Matrix *b, const Matrix *c, const Matrix *d) {
  const int half = d->type == TYPE_FLOAT16 || d->type == TYPE_BFLOAT16;
  return half && a->type == d->type && b->type == d->type && c->type == d->type && a->columns == b->rows &&
         a->rows == d->rows && b->columns == d->columns && c->rows == d->rows && c->columns == d->columns;
}

int cublasLtMatmulAlgoGetHeuristic(void *handle, Product *product, Matrix *a, Matrix *b, Matrix *c, Matrix *d,
                                   Preference *preference, int wanted, Found *found, int *count) {
  (void)handle;
  ++asked;
  *count = 0;
  if (!fits(a, b, c, d) || wanted < 1) return INVALID;
  if (refuses) return refuses;
  if (preference->max_workspace < WORKSPACE) return NOT_SUPPORTED;
  uint64_t alignment = preference->alignment[0];
  for (int operand = 1; operand < 4; ++operand)
    if (preference->alignment[operand] != alignment) return NOT_SUPPORTED;
  Found one = {{{d->rows, d->columns, product->epilogue, alignment}}, WORKSPACE, OK, 1.0f, {0}};
  *found = one;
  *count = 1;
  return OK;
}

int cublasLtMatmul(void *handle, const Product *product, const float *alpha, const void *a, const Matrix *ma, const void *b,
                   const Matrix *mb, const float *beta, const void *c, const Matrix *mc, void *d, const Matrix *md,
                   const Algorithm *algorithm, void *workspace, size_t size, void *stream) {
  (void)handle, (void)c, (void)stream;
  if (fails) return fails;
  const uint64_t *made_for = algorithm->data;
  if (!fits(ma, mb, mc, md) || made_for[0] != md->rows || made_for[1] != md->columns || made_for[2] != product->epilogue)
    return INVALID;
  if (*alpha != 1 || *beta != 0 || !(product->epilogue & HAS_BIAS) || !workspace || size != WORKSPACE) return INVALID;
  if (((uintptr_t)a | (uintptr_t)b | (uintptr_t)d | (uintptr_t)product->bias) % made_for[3]) return INVALID;
  memset(workspace, 0xee, size);
  for (uint64_t column = 0; column < md->columns; ++column)
    for (uint64_t row = 0; row < md->rows; ++row) {
      float sum = read_half(product->bias, md->type, row);
      for (uint64_t k = 0; k < ma->columns; ++k)
        sum += read_half(a, ma->type, row + k * ma->stride) * read_half(b, mb->type, k + column * mb->stride);
      if (product->epilogue & HAS_GELU)
        sum = 0.5f * sum * (1 + tanhf(0.7978845608f * (sum + 0.044715f * sum * sum * sum)));
      write_half(d, md->type, row + column * md->stride, sum);
    }
  return OK;
}
