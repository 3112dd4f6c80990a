"""The OpenAI API of a sampler: chat completions, completions and models, over the same backend as the native routes.

Text becomes tokens here and tokens text; what is sampled, and how, is the backend's. So a replica and a router serve
it with the same code.
"""
