//! The CPU: vectorised with pulp (AVX2, AVX-512, portable), parallel with rayon.
