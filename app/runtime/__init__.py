"""The process and the machine: loading the engine, memory allocator, CPUs."""
