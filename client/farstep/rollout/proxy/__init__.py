"""The OpenAI API that agents speak to: served here, answered by the sampler, seen on the way."""
