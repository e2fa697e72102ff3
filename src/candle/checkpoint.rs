//! Checkpoints of a candle model under Muon: the optimizer's state and the variables, together.

use candle_core::{DType, Tensor};
use half::bf16;

use super::{CandleMuon, Inner, NamedVar, candle_error};
use crate::device::HostBuffer;
use crate::error::{Error, Result, ResultExt};
use crate::state::Checkpoint;

impl CandleMuon {
    /// The optimizer's state and every variable, under its name, on the host; waits for the device.
    ///
    /// # Errors
    /// As [`Muon::checkpoint`](crate::Muon::checkpoint); a variable that cannot be read.
    ///
    /// # Example
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::{Module, Optimizer, VarBuilder, VarMap};
    /// use muon_cuda::candle::CandleMuon;
    /// use muon_cuda::{Checkpoint, MuonConfig, RoutingRule};
    ///
    /// let model = || {
    ///     let varmap = VarMap::new();
    ///     let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    ///     let layer = candle_nn::linear(8, 16, vb.pp("hidden"))?;
    ///     let muon = CandleMuon::new_from_varmap(&varmap, MuonConfig::default(), &RoutingRule::default())?;
    ///     Ok::<_, Box<dyn std::error::Error>>((layer, muon))
    /// };
    /// let (layer, mut muon) = model()?;
    /// let x = Tensor::randn(0f32, 1.0, (4, 8), &Device::Cpu)?;
    /// muon.backward_step(&layer.forward(&x)?.sqr()?.mean_all()?)?;
    /// let path = std::env::temp_dir().join("muon-candle-doc.safetensors");
    /// muon.checkpoint()?.save(&path)?;
    ///
    /// let (again, mut muon) = model()?;       // another process, other random weights
    /// muon.restore(&Checkpoint::load(&path)?)?;
    /// assert_eq!(again.forward(&x)?.to_vec2::<f32>()?, layer.forward(&x)?.to_vec2::<f32>()?);
    /// # std::fs::remove_file(&path).ok();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        let mut checkpoint = on!(&mut self.muon, m => m.checkpoint())?;
        for v in &self.vars {
            let buffer =
                to_host(v).map_err(|e| candle_error(e).context(format!("param `{}`", v.name)))?;
            checkpoint.insert(&v.name, v.var.dims(), buffer);
        }
        Ok(checkpoint)
    }

    /// Puts the optimizer's state and the variables back as [`CandleMuon::checkpoint`] found them.
    ///
    /// The steps that follow are bit for bit those of a run that never stopped. Learning rates are the configuration's and
    /// the schedule's, not the checkpoint's.
    ///
    /// # Errors
    /// As [`Muon::restore`](crate::Muon::restore); a variable that is not in the checkpoint, or there in another shape or dtype.
    /// Nothing changes. A failed device may leave some variables as they were: restore again.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let mut tensors = Vec::with_capacity(self.vars.len());
        for v in &self.vars {
            let tensor = from_host(v, checkpoint.tensor(&v.name, v.var.dims())?);
            tensors.push(tensor.context(|| format!("restore `{}`", v.name))?);
        }
        on!(&mut self.muon, m => m.restore(checkpoint))?;
        for (v, tensor) in self.vars.iter().zip(&tensors) {
            v.var
                .set(tensor)
                .map_err(|e| candle_error(e).context(format!("restore `{}`", v.name)))?;
        }
        Ok(())
    }
}

fn to_host(v: &NamedVar) -> candle_core::Result<HostBuffer> {
    let flat = v.var.as_tensor().flatten_all()?;
    Ok(match v.var.dtype() {
        DType::BF16 => HostBuffer::Bf16(flat.to_vec1::<bf16>()?),
        _ => HostBuffer::F32(flat.to_vec1::<f32>()?),
    })
}

/// A tensor like the variable, where the variable is.
fn from_host(v: &NamedVar, buffer: &HostBuffer) -> Result<Tensor> {
    if !v.var.is_contiguous() {
        return Err(Error::unsupported("the variable is not contiguous"));
    }
    let (dims, device) = (v.var.dims(), v.var.device());
    match (v.var.dtype(), buffer) {
        (DType::F32, HostBuffer::F32(x)) => Tensor::from_slice(x, dims, device),
        (DType::BF16, HostBuffer::Bf16(x)) => Tensor::from_slice(x, dims, device),
        (dtype, _) => {
            return Err(Error::dtype_mismatch(
                "tensor in the checkpoint",
                dtype.as_str(),
                buffer.dtype(),
            ));
        }
    }
    .map_err(candle_error)
}
