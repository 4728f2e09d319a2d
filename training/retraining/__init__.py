"""Training of a single child: masked LM, replaced-token detection, distillation (5.1, 5.4)."""
