"""Compression beyond quantization: pruning, sharing, Huffman, low rank, distillation (notebooks 11 to 17)."""
