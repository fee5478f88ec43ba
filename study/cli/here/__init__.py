"""What commands compute on this machine; imports torch, Ray and MLflow, so commands import it when they are called."""
