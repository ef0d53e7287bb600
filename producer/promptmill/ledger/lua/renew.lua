-- renew: one call a beat for all claims of a worker; returns the tokens whose lease is lost.
local lease_ms = ARGV[3]
write_even_when_full()
local until_us = text(clock() + tonumber(lease_ms) * 1000)
local lost = {}
for i = 4, #ARGV do
  if redis.call('ZADD', key('leases'), 'XX', 'CH', until_us, ARGV[i]) == 0 then
    lost[#lost + 1] = ARGV[i]
    acquit(ARGV[i])
  end
end
return lost
