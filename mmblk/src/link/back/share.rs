//! One lane's share of its front end's account: what it has to ask before it serves, and what wakes it when it may.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use fido_core::addr::DomainId;
use fido_core::wait::{Source, WakeId};

use super::account::{Account, Lent};
use super::limits::Limits;
use fido_core::alarm::Alarm;

/// One lane of a front end. As a source it is ready when what was refused may be had.
#[derive(Debug)]
pub(super) struct Share {
    account: Arc<Account>,
    lane: usize,
    alarm: Arc<Alarm>,
    /// Whom this lane serves.
    user: Option<DomainId>,
    /// No other incarnation stands in this one's way.
    is_cleared: bool,
    lack: Lack,
}

/// What the first waiting request lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    Nothing,
    /// Others of its front end have to end first.
    Request,
    /// Data of others has to be returned first, until then.
    Bytes {
        len: u64,
        patience: Instant,
    },
}

impl Share {
    /// One share for each lane of `account`.
    pub(super) fn of_all(account: &Arc<Account>) -> Vec<Self> {
        let alarms = account.alarms().cloned().enumerate();
        alarms.map(|(lane, alarm)| Self::new(account.clone(), lane, alarm)).collect()
    }

    /// The share of a lane that is its front end's only one, and whose queue is so deep.
    ///
    /// # Errors
    /// The kernel's, if there is no descriptor left.
    pub(super) fn alone(limits: Limits, depth: u64) -> io::Result<Self> {
        let account = Account::new(limits, 0, depth)?;
        Ok(Self::new(account, 0, Arc::new(Alarm::new()?)))
    }

    fn new(account: Arc<Account>, lane: usize, alarm: Arc<Alarm>) -> Self {
        Self { account, lane, alarm, user: None, is_cleared: false, lack: Lack::Nothing }
    }

    pub(super) fn limits(&self) -> &Limits {
        self.account.limits()
    }

    pub(super) fn came(&mut self, user: DomainId) {
        self.account.came(self.lane, user);
        (self.user, self.is_cleared, self.lack) = (Some(user), false, Lack::Nothing);
    }

    pub(super) fn gone(&mut self, requests: usize) {
        self.account.gone(self.lane, requests);
        (self.user, self.is_cleared, self.lack) = (None, false, Lack::Nothing);
    }

    pub(super) fn left_ended(&self) {
        self.account.left_ended();
    }

    /// Whether the present user may be served.
    #[inline]
    pub(super) fn may_serve(&mut self) -> bool {
        self.is_cleared = self.is_cleared || self.user.is_some_and(|user| self.account.may_serve(user));
        self.is_cleared
    }

    pub(super) fn has_request(&self) -> bool {
        self.account.has_request()
    }

    pub(super) fn take_request(&self) -> bool {
        self.account.take_request()
    }

    pub(super) fn return_requests(&self, count: u32) {
        self.account.return_requests(count);
    }

    pub(super) fn lend(&self, len: u64) -> Option<Lent> {
        self.account.lend(len)
    }

    pub(super) fn set_lack(&mut self, lack: Lack) {
        self.lack = lack;
    }

    pub(super) fn lack(&self) -> Lack {
        self.lack
    }
}

impl Source for Share {
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }

    fn wake_id(&self) -> Option<WakeId> {
        Some(self.alarm.id())
    }

    fn arm(&mut self) {
        match self.lack {
            Lack::Nothing => return,
            Lack::Request => {}
            Lack::Bytes { patience, .. } => self.alarm.set(patience),
        }
        self.account.want();
    }

    fn ready(&mut self) -> bool {
        if let (Some(user), false) = (self.user, self.is_cleared)
            && self.account.may_serve(user)
        {
            return true;
        }
        match self.lack {
            Lack::Nothing => false,
            Lack::Request => self.account.has_request(),
            Lack::Bytes { len, patience } => self.account.has_bytes(len) || Instant::now() >= patience,
        }
    }

    fn disarm(&mut self) {
        self.alarm.reset();
    }
}
