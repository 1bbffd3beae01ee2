"""The engine: runs one llama.cpp model; docs/design/runtime.md says how."""
