"""The queue worker: admission, queue, batches and the thread that runs them on the device."""
